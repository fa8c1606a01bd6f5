//! What a budget allows (**BUDGET-1**): pure functions of accounts, the same for every backend.
//!
//! An *account* is kept for each run, for each of its tasks and for each agent that worked on it. It holds what was
//! used, what nobody can settle any more (charged whole), calls, and active time. Reservations that are open are not in
//! it yet; they come in two kinds. One of a *step* is settled when the step ends, which it does by itself: whoever does
//! not fit waits for that, even if it could not help, because a refusal stops the run and an answer that is under way
//! would be paid for and lost. One that an agent made *by hand* is settled when that agent pleases, and it may itself be
//! waiting; so it counts as spent, and no two agents can wait for each other.

use crate::types::{Amount, Spent};
use mnemosyne_core::error::codes;
use mnemosyne_core::{Budget, EventKind, Item, Limits, NewEvent, Problem, ProblemKind, Run, RunState, Usage};
use serde_json::json;

/// Money is a sum of floating-point prices: what fits but for rounding fits.
const ROUNDING_USD: f64 = 1e-9;
/// Parts of a limit at which people are warned, once each.
const WARN_AT: [f64; 2] = [0.8, 0.95];

/// Whose account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Run,
    Task(String),
    Agent(String),
}

impl Level {
    /// All accounts that an item under a claim of this agent spends from.
    pub(crate) fn of(item: &Item, agent: &str) -> Vec<Level> {
        let task = item.task.clone().map(Level::Task);
        [Some(Level::Run), task, Some(Level::Agent(agent.to_owned()))].into_iter().flatten().collect()
    }

    /// How it is written in a row; the name of a run's own is empty.
    pub(crate) fn key(&self) -> (&'static str, &str) {
        match self {
            Level::Run => ("run", ""),
            Level::Task(name) => ("task", name),
            Level::Agent(name) => ("agent", name),
        }
    }

    /// Reads [`Level::key`] back.
    pub(crate) fn parse(level: &str, name: String) -> Level {
        match level {
            "task" => Level::Task(name),
            "agent" => Level::Agent(name),
            _ => Level::Run,
        }
    }

    fn limits<'a>(&self, budget: &'a Budget) -> &'a Limits {
        match self {
            Level::Run => &budget.run,
            Level::Task(_) => &budget.per_task,
            Level::Agent(_) => &budget.per_agent,
        }
    }

    fn said(&self, run: &str) -> String {
        match self {
            Level::Run => format!("run {run}"),
            Level::Task(name) => format!("task {name} of run {run}"),
            Level::Agent(name) => format!("{name} in run {run}"),
        }
    }

    fn flag(&self, kind: &str, value: &str) -> String {
        match self {
            Level::Run => format!("--budget-{kind} {value}"),
            Level::Task(_) => format!("--budget-per-task {kind}={value}"),
            Level::Agent(_) => format!("--budget-per-agent {kind}={value}"),
        }
    }
}

/// One account, without what is open.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Account {
    /// Of settled reservations and steps.
    pub(crate) usage: Usage,
    /// Reservations made, whatever became of them.
    pub(crate) calls: u64,
    /// Reservations that were left open by a crash or by a step that failed, and their sum.
    pub(crate) unknown_calls: u64,
    pub(crate) unknown: Amount,
    /// Active time, counted up to `counted_at`.
    pub(crate) milliseconds: i64,
    /// `None` while it is not active.
    pub(crate) counted_at: Option<i64>,
}

impl Account {
    pub(crate) fn tokens(&self) -> u64 {
        self.usage.tokens().saturating_add(self.unknown.tokens)
    }

    pub(crate) fn usd(&self) -> f64 {
        self.usage.cost_usd + self.unknown.usd.unwrap_or_default()
    }

    /// Active time until now.
    pub(crate) fn seconds(&self, now: i64) -> f64 {
        let running = self.counted_at.map_or(0, |since| now.saturating_sub(since).max(0));
        (self.milliseconds + running) as f64 / 1_000.0
    }

    /// Counts the time until now.
    pub(crate) fn count_time(&mut self, now: i64) {
        if let Some(since) = self.counted_at {
            self.milliseconds += now.saturating_sub(since).max(0);
            self.counted_at = Some(now.max(since));
        }
    }

    /// From now on it is active.
    pub(crate) fn begin(&mut self, now: i64) {
        self.count_time(now);
        self.counted_at = Some(self.counted_at.unwrap_or(now));
    }

    /// It is not active any more.
    pub(crate) fn pause(&mut self, now: i64) {
        self.count_time(now);
        self.counted_at = None;
    }

    /// A reservation that nobody will settle is charged whole.
    pub(crate) fn charge_unknown(&mut self, amount: Amount) {
        self.unknown_calls += 1;
        self.unknown = add(self.unknown, amount);
    }

    /// For people; time as of the last sign of life.
    pub(crate) fn spent(&self) -> Spent {
        Spent { usd: self.usd(), tokens: self.tokens(), calls: self.calls, seconds: self.milliseconds as f64 / 1_000.0 }
    }
}

/// Open reservations of one account.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Open {
    /// How many are of steps, which end by themselves, and their sum.
    pub(crate) steps: u32,
    pub(crate) of_steps: Amount,
    /// Of agents that settle them when they please.
    pub(crate) by_hand: Amount,
}

impl Open {
    pub(crate) fn add(&mut self, amount: Amount, of_step: bool) {
        self.steps += u32::from(of_step);
        let sum = if of_step { &mut self.of_steps } else { &mut self.by_hand };
        *sum = add(*sum, amount);
    }
}

fn add(sum: Amount, amount: Amount) -> Amount {
    Amount {
        tokens: sum.tokens.saturating_add(amount.tokens),
        usd: Some(sum.usd.unwrap_or_default() + amount.usd.unwrap_or_default()),
    }
}

/// Whether an amount may be set aside, from all accounts that it comes from; the run's own is one of them.
///
/// # Errors
/// MN-0502: not while requests are under way. Once none is, for good: MN-0501 where it does not fit; `data.left` says what
/// could (`tokens`, `usd`; null is no limit). MN-0503 where it has no price and dollars are limited.
pub(crate) fn check(
    run: &str,
    budget: &Budget,
    accounts: &[(Level, Account, Open)],
    amount: Amount,
    now: i64,
) -> Result<(), Problem> {
    let lack = accounts.iter().find_map(|(level, account, open)| {
        Some((level, lacking(level, budget, account, *open, add(open.of_steps, amount), now)?))
    });
    let under_way = accounts.iter().any(|(_, _, open)| open.steps > 0);
    if amount.usd.is_none()
        && let Some((level, ..)) = accounts.iter().find(|(level, ..)| level.limits(budget).usd.is_some())
    {
        return Err(if under_way { busy(run) } else { unpriced(level) });
    }
    match lack {
        None => Ok(()),
        Some(_) if under_way => Err(busy(run)),
        Some((level, lack)) => {
            let (tokens, usd) = left(budget, accounts);
            Err(lack.refusal(run, level).with("left", json!({"tokens": tokens, "usd": usd})))
        }
    }
}

fn busy(run: &str) -> Problem {
    Problem::new(
        ProblemKind::Budget,
        codes::BUDGET_BUSY,
        format!("the budget of run {run} has no room beside the requests that are under way"),
    )
    .because("when they have ended, what they did not use is free again")
    .hint("it is asked again by itself")
}

/// What does not fit.
struct Lack {
    kind: &'static str,
    spent: f64,
    limit: f64,
    asked: f64,
    by_hand: f64,
}

fn lacking(level: &Level, budget: &Budget, account: &Account, open: Open, amount: Amount, now: i64) -> Option<Lack> {
    let limits = level.limits(budget);
    if let Some(limit) = limits.tokens {
        let (spent, by_hand) = (account.tokens(), open.by_hand.tokens);
        if spent.saturating_add(by_hand).saturating_add(amount.tokens) > limit {
            let lack = |value: u64| value as f64;
            return Some(Lack {
                kind: "tokens",
                spent: lack(spent),
                limit: lack(limit),
                asked: lack(amount.tokens),
                by_hand: lack(by_hand),
            });
        }
    }
    if let Some(limit) = limits.usd {
        let (spent, by_hand) = (account.usd(), open.by_hand.usd.unwrap_or_default());
        let asked = amount.usd.unwrap_or_default();
        if spent + by_hand + asked > limit + ROUNDING_USD {
            return Some(Lack { kind: "usd", spent, limit, asked, by_hand });
        }
    }
    if let Some(limit) = limits.calls
        && account.calls >= limit
    {
        let (spent, limit) = (account.calls as f64, limit as f64);
        return Some(Lack { kind: "calls", spent, limit, asked: 1.0, by_hand: 0.0 });
    }
    out_of_time(level, budget, account, now)
}

fn out_of_time(level: &Level, budget: &Budget, account: &Account, now: i64) -> Option<Lack> {
    let (spent, limit) = (account.seconds(now), level.limits(budget).seconds?);
    (spent >= limit).then_some(Lack { kind: "seconds", spent, limit, asked: 0.0, by_hand: 0.0 })
}

impl Lack {
    fn refusal(&self, run: &str, level: &Level) -> Problem {
        let Lack { kind, spent, limit, asked, by_hand } = self;
        let reason = match *kind {
            "seconds" => format!("{spent:.1} of {limit:.1} seconds are used"),
            "calls" => format!("{spent} of {limit} calls are made"),
            _ => {
                let held =
                    if *by_hand > 0.0 { format!(" and {} set aside", figure(kind, *by_hand)) } else { String::new() };
                let (asked, spent, limit) = (figure(kind, *asked), figure(kind, *spent), figure(kind, *limit));
                format!("{asked} are asked for, {spent} of {limit} are used{held}")
            }
        };
        let enough = (spent + by_hand + asked).max(limit * 2.0);
        let refused =
            Problem::new(ProblemKind::Budget, codes::BUDGET, format!("the budget of {} is used up", level.said(run)))
                .because(reason)
                .hint(format!("mnemosyne resume {run} {}", level.flag(kind, &typed(kind, enough))));
        refused
            .with("kind", *kind)
            .with("level", level.key().0)
            .with("name", level.key().1)
            .with("spent", *spent)
            .with("limit", *limit)
    }
}

/// For a sentence.
fn figure(kind: &str, value: f64) -> String {
    if kind == "usd" { format!("${value:.4}") } else { format!("{value} {kind}") }
}

/// For a command line; never less than the value.
fn typed(kind: &str, value: f64) -> String {
    if kind == "usd" { format!("{:.2}", (value * 100.0).ceil() / 100.0) } else { format!("{:.0}", value.ceil()) }
}

/// The most that can still be set aside, now that nothing is under way.
fn left(budget: &Budget, accounts: &[(Level, Account, Open)]) -> (Option<u64>, Option<f64>) {
    let tokens = accounts.iter().filter_map(|(level, account, open)| {
        let taken = account.tokens().saturating_add(open.by_hand.tokens);
        Some(level.limits(budget).tokens?.saturating_sub(taken))
    });
    let usd = accounts.iter().filter_map(|(level, account, open)| {
        let taken = account.usd() + open.by_hand.usd.unwrap_or_default();
        Some((level.limits(budget).usd? - taken).max(0.0))
    });
    (tokens.min(), usd.min_by(f64::total_cmp))
}

fn unpriced(level: &Level) -> Problem {
    let (level, name) = level.key();
    Problem::new(ProblemKind::Budget, codes::BUDGET_UNPRICED, "a request has no known price")
        .because("dollars are limited, and the limit could not be kept")
        .hint("use a model with a known price; an agent that reserves by hand says usd=0 for what costs nothing")
        .with("kind", "usd")
        .with("level", level)
        .with("name", name)
}

/// A reservation that cannot be counted would make every later sum nonsense.
pub(crate) fn check_amount(amount: Amount) -> Result<(), Problem> {
    match amount.usd {
        Some(usd) if !usd.is_finite() || usd < 0.0 => {
            Err(crate::rules::bad_item(format!("a reservation of {usd} US dollars"))
                .because("an amount of money is a finite number that is not negative"))
        }
        _ => Ok(()),
    }
}

/// `budget_warning` for each limit and threshold that lies between an account as it was and as it is.
pub(crate) fn warnings(run: &str, budget: &Budget, level: &Level, before: &Account, after: &Account) -> Vec<NewEvent> {
    let mut events = Vec::new();
    for (kind, limit, was, is) in measured(level.limits(budget), before, after) {
        for fraction in WARN_AT {
            let threshold = limit * fraction;
            if was < threshold && threshold <= is {
                let (name, which) = level.key();
                let task = if let Level::Task(task) = level { Some(task.clone()) } else { None };
                let warning = NewEvent { run: Some(run.to_owned()), task, ..NewEvent::new(EventKind::BudgetWarning) };
                let warning =
                    warning.with("kind", kind).with("fraction", fraction).with("spent", is).with("limit", limit);
                events.push(warning.with("level", name).with("name", which));
            }
        }
    }
    events
}

/// Kind, limit, and what two accounts have spent of it; time only as far as it is counted.
fn measured(limits: &Limits, before: &Account, after: &Account) -> Vec<(&'static str, f64, f64, f64)> {
    let of = |account: &Account| {
        [account.usd(), account.tokens() as f64, account.calls as f64, account.milliseconds as f64 / 1_000.0]
    };
    let limits =
        [limits.usd, limits.tokens.map(|limit| limit as f64), limits.calls.map(|limit| limit as f64), limits.seconds];
    let kinds = ["usd", "tokens", "calls", "seconds"];
    let all = kinds.into_iter().zip(limits).zip(of(before).into_iter().zip(of(after)));
    all.filter_map(|((kind, limit), (was, is))| Some((kind, limit?, was, is))).collect()
}

/// Whether counting an account's time now would tell anybody anything: a warning, or the end.
pub(crate) fn time_is_due(budget: &Budget, level: &Level, account: &Account, now: i64) -> bool {
    let Some(limit) = level.limits(budget).seconds else { return false };
    let (was, is) = (account.milliseconds as f64 / 1_000.0, account.seconds(now));
    is >= limit || WARN_AT.iter().any(|fraction| was < limit * fraction && limit * fraction <= is)
}

/// Why a run is to be stopped now, if one of its accounts is out of time.
pub(crate) fn time_is_up(run: &str, budget: &Budget, level: &Level, account: &Account, now: i64) -> Option<Problem> {
    Some(out_of_time(level, budget, account, now)?.refusal(run, level))
}

/// A resumed run's budget: what is given replaces what was, what is not given stays.
pub(crate) fn raise(budget: Budget, given: Option<Budget>) -> Budget {
    let Some(given) = given else { return budget };
    let raise = |was: Limits, given: Limits| Limits {
        usd: given.usd.or(was.usd),
        tokens: given.tokens.or(was.tokens),
        calls: given.calls.or(was.calls),
        seconds: given.seconds.or(was.seconds),
        depth: given.depth.or(was.depth),
    };
    Budget {
        run: raise(budget.run, given.run),
        per_task: raise(budget.per_task, given.per_task),
        per_agent: raise(budget.per_agent, given.per_agent),
    }
}

/// Whether a run may go on with what was given: nobody is asked to resume twice. Looked at are the limits that were given, and
/// all of a run that its budget stopped; one that was interrupted may have nothing left to spend and still be finished.
/// `accounts` has what is still to be charged; those of tasks that have ended are left out.
pub(crate) fn check_resume(run: &Run, given: Option<Budget>, accounts: &[(Level, Account)]) -> Result<(), Problem> {
    let (raised, given) = (raise(run.budget, given), given.unwrap_or_default());
    for (level, account) in accounts {
        let asked = measured(level.limits(&given), account, account);
        for (kind, limit, spent, _) in measured(level.limits(&raised), account, account) {
            let looked_at = run.state == RunState::Budget || asked.iter().any(|(name, ..)| *name == kind);
            if looked_at && spent >= limit {
                let (spent_text, limit_text) = (figure(kind, spent), figure(kind, limit));
                return Err(Problem::new(
                    ProblemKind::InvalidInput,
                    codes::BUDGET_TOO_SMALL,
                    format!("the budget of {} is not larger than what is spent", level.said(&run.id)),
                )
                .because(format!("{spent_text} are spent, the limit is {limit_text}"))
                .hint(format!(
                    "mnemosyne resume {} {}",
                    run.id,
                    level.flag(kind, &typed(kind, spent.max(limit) * 2.0))
                )));
            }
        }
    }
    Ok(())
}
