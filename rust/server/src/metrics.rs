//! `/metrics`: the store's sums in the text format of Prometheus, the same that `mnemosyne stats` shows.
//!
//! Labels are roles, phases, outcomes and states, of which there are a few dozen together; never an id.

use crate::answer::Refusal;
use crate::api::Window;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use mnemosyne_core::error::codes;
use mnemosyne_core::{AgentRole, Problem, ProblemKind, StatsFold};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
/// Of one, by what, and how many.
type Rows = Vec<(Labels, u64)>;

/// Answers with all of them.
pub(crate) async fn metrics(State(window): State<Window>) -> Result<Response, Refusal> {
    let snapshot = window.hub.snapshot().await?;
    let mut page = Page(Registry::with_prefix("mnemosyne"));
    window.hub.with_stats(|fold| page.sums(fold));
    let queue = snapshot.live.queue;
    let items = [("ready", queue.ready), ("running", queue.running), ("waiting", queue.waiting)];
    page.gauge("items", "Work items by state", items.map(|(state, count)| (label("state", state), count)).into());
    let living = |boot: &&String| snapshot.live.boots.get(*boot).is_some_and(|seen| seen.owner.alive);
    let degraded = |role: &AgentRole| {
        let boots = snapshot.picture.boots.iter().filter(|(boot, _)| living(boot));
        boots.filter(|(_, picture)| picture.degraded.contains_key(role)).count() as u64
    };
    let roles = AgentRole::ALL.iter().map(|role| (label("role", role.as_str()), degraded(role)));
    page.gauge("roles_degraded", "Processes in which a role is degraded", roles.collect());
    let alive = snapshot.live.boots.values().filter(|seen| seen.owner.alive).count() as u64;
    page.gauge("processes", "Processes with agents that live", vec![(Vec::new(), alive)]);
    page.gauge("streams", "Clients that follow events", vec![(Vec::new(), window.following() as u64)]);
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], page.text()?).into_response())
}

fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

struct Page(Registry);

impl Page {
    fn sums(&mut self, fold: &StatsFold) {
        let stats = fold.stats();
        self.counter("events", "Events of the store", vec![(Vec::new(), stats.events)]);
        let (mut ended, mut open) = (Rows::new(), Rows::new());
        for ((role, phase, outcome), count) in fold.claims() {
            let mut labels = label("role", role.map_or("", |role| role.as_str()));
            labels.push(("phase", phase.map_or("", |phase| phase.as_str()).to_owned()));
            if outcome == "open" {
                open.push((labels, count));
            } else {
                labels.push(("outcome", outcome.to_owned()));
                ended.push((labels, count));
            }
        }
        self.counter("claims", "Claims of work items: started, and by their end", ended);
        self.gauge(
            "claims_open",
            "Claims that have begun and not ended; a crash leaves one until it is taken back",
            open,
        );
        let by = |name, counts: &mnemosyne_core::stats::Counts| -> Rows {
            counts.iter().map(|(value, count)| (label(name, value), *count)).collect()
        };
        self.counter("tasks", "Tasks that ended", by("outcome", &stats.tasks));
        self.counter("reviews", "Verdicts", by("outcome", &stats.reviews));
        self.counter("steps", "Steps of the journal: started, and by their end", by("outcome", &stats.steps));
        self.gauge("runs", "Runs by the state in which their events left them", by("state", &stats.runs));
        let usage = stats.usage;
        let tokens = [
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cache_read", usage.cache_read_tokens),
            ("cache_write", usage.cache_write_tokens),
        ];
        self.counter("tokens", "Tokens by kind", tokens.map(|(kind, count)| (label("kind", kind), count)).into());
        self.counter("turns", "Turns of the model that completed", vec![(Vec::new(), usage.turns)]);
        self.counter("agent_restarts", "Agents started again", vec![(Vec::new(), stats.restarts)]);
        self.counter("agent_quarantines", "Agents put into quarantine", vec![(Vec::new(), stats.quarantines)]);
        let cost = Counter::<f64, AtomicU64>::default();
        cost.inc_by(usage.cost_usd);
        self.0.register("cost_usd", "US dollars at list price", cost);
    }

    fn counter(&mut self, name: &str, help: &str, rows: Rows) {
        let family = Family::<Labels, Counter>::default();
        for (labels, count) in rows {
            family.get_or_create(&labels).inc_by(count);
        }
        self.0.register(name, help, family);
    }

    fn gauge(&mut self, name: &str, help: &str, rows: Rows) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, count) in rows {
            family.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.0.register(name, help, family);
    }

    fn text(&self) -> Result<String, Problem> {
        let mut text = String::new();
        encode(&mut text, &self.0).map_err(|error| {
            Problem::new(ProblemKind::Closed, codes::REQUEST_UNREADABLE, "the figures cannot be written")
                .because(error.to_string())
        })?;
        Ok(text)
    }
}
