//! Supervisors and their children as data: what may be said, what it means when nothing is said, and which children a
//! death concerns. Decisions only; who stops and starts what is the tree's.
//!
//! The words are OTP's (`supervisor(3)`), with two differences. The restart window belongs to what restarts together: to
//! each child under `one_for_one` and in a pool, to all of them under the other two. And a window that is full takes
//! nothing down with it: it ends in quarantine, which the next level is told of.

use crate::error::{Problem, ProblemKind, codes};
use crate::window::{RESTART_WINDOW_MS, RESTARTS_TO_QUARANTINE};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// Which children start anew when one of them goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// That one. Children are stopped one by one, the youngest first.
    OneForOne,
    /// All of them.
    OneForAll,
    /// That one and those that were started after it.
    RestForOne,
    /// That one; the children are alike, can be scaled, and are stopped side by side.
    #[default]
    Pool,
}

impl Strategy {
    /// The children, by start order, that start anew with the child at `index`.
    pub fn affected(self, index: usize, children: usize) -> Range<usize> {
        match self {
            Strategy::OneForOne | Strategy::Pool => index..index + 1,
            Strategy::OneForAll => 0..children,
            Strategy::RestForOne => index..children,
        }
    }

    /// Whether children restart together, and so share one restart window.
    pub const fn is_group(self) -> bool {
        matches!(self, Strategy::OneForAll | Strategy::RestForOne)
    }
}

/// How one supervisor treats its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SupervisorSpec {
    /// Who restarts with whom.
    pub strategy: Strategy,
    /// Restarts within `period` that are accepted; one more ends in quarantine. 0: none is.
    pub intensity: u32,
    /// Length of the restart window.
    #[serde(serialize_with = "as_seconds")]
    pub period: Milliseconds,
}

/// A time that is seconds on the wire.
pub type Milliseconds = u64;

impl Default for SupervisorSpec {
    /// A pool with 5 restarts in 300 s.
    fn default() -> Self {
        Self { strategy: Strategy::Pool, intensity: RESTARTS_TO_QUARANTINE as u32, period: RESTART_WINDOW_MS }
    }
}

impl SupervisorSpec {
    /// Reads `{strategy, intensity, period}`; what is not said has its default.
    ///
    /// # Errors
    /// One entry for each key that cannot be used.
    pub fn read(value: Value) -> Result<Self, SpecError> {
        let mut keys = Keys::of("supervisor", value)?;
        let default = Self::default();
        let spec = Self {
            strategy: keys.take("strategy", default.strategy, "one_for_one, one_for_all, rest_for_one or pool"),
            intensity: keys.take("intensity", default.intensity, "a count of restarts, 0 or more"),
            period: keys.seconds("period", default.period),
        };
        if spec.period == 0 {
            keys.wrong("period", "is 0; a window has a length");
        }
        keys.finish(spec)
    }
}

/// When a child that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Always.
    #[default]
    Permanent,
    /// Only when it ended by an error.
    Transient,
    /// Never; what is over is forgotten.
    Temporary,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, without an error.
    Normal,
    /// It crashed, was killed, or gave up.
    Abnormal,
    /// To be started anew: a person asked for it, or its bridge was replaced. No end of the child.
    Replaced,
}

impl Restart {
    /// Whether a child that ended so is started again.
    pub const fn after(self, exit: Exit) -> bool {
        match (self, exit) {
            (_, Exit::Replaced) | (Restart::Permanent, _) | (Restart::Transient, Exit::Abnormal) => true,
            (Restart::Transient, Exit::Normal) | (Restart::Temporary, _) => false,
        }
    }
}

/// What a child gets before it is ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Nothing: its work is cut off, and goes back without a charge.
    Kill,
    /// So long to finish what it holds; then that is cancelled, and goes back without a charge.
    Within(Milliseconds),
    /// As long as it takes.
    Infinity,
}

impl Default for Shutdown {
    /// 10 s. OTP's 5 s are for processes that hold no model's answer.
    fn default() -> Self {
        Shutdown::Within(10_000)
    }
}

impl Serialize for Shutdown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Shutdown::Kill => serializer.serialize_str("kill"),
            Shutdown::Infinity => serializer.serialize_str("infinity"),
            Shutdown::Within(milliseconds) => as_seconds(milliseconds, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Shutdown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let refused = || de::Error::custom("not \"kill\", \"infinity\" or seconds");
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == "kill" => Ok(Shutdown::Kill),
            Value::String(text) if text == "infinity" => Ok(Shutdown::Infinity),
            Value::Number(number) => number.as_f64().and_then(milliseconds).map(Shutdown::Within).ok_or_else(refused),
            _ => Err(refused()),
        }
    }
}

/// Where an agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// On the loop thread that all such agents share.
    #[default]
    Thread,
    /// In a process of its own, which can be killed.
    Process,
}

/// What a worker process may use; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct WorkerLimits {
    /// Memory that each of its processes may write to, in MiB: of address space, Python asks for far more than it uses.
    pub memory_mb: Option<u64>,
    /// Processor time of each over its life, in seconds.
    pub cpu_seconds: Option<u64>,
}

impl WorkerLimits {
    /// Reads `{memory_mb, cpu_seconds}`.
    ///
    /// # Errors
    /// One entry for each key that cannot be used.
    pub fn read(value: Value) -> Result<Self, SpecError> {
        let mut keys = Keys::of("limits", value)?;
        let limits = Self {
            memory_mb: keys.take_if("memory_mb", None, "a whole number of MiB, 1 or more", |limit| *limit != Some(0)),
            cpu_seconds: keys
                .take_if("cpu_seconds", None, "a whole number of seconds, 1 or more", |limit| *limit != Some(0)),
        };
        keys.finish(limits)
    }
}

/// One key that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongKey {
    /// Which.
    pub key: String,
    /// Why: what was given, and what is expected.
    pub reason: String,
}

/// A specification that cannot be used, with all that is wrong about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {what} specification cannot be used: {}", list(wrong))]
pub struct SpecError {
    /// `supervisor`, `agent` or `limits`.
    pub what: &'static str,
    /// At least one.
    pub wrong: Vec<WrongKey>,
}

fn list(wrong: &[WrongKey]) -> String {
    let lines: Vec<String> = wrong.iter().map(|wrong| format!("{} {}", wrong.key, wrong.reason)).collect();
    lines.join("; ")
}

impl From<SpecError> for Problem {
    fn from(error: SpecError) -> Self {
        let message = match error.wrong.as_slice() {
            [wrong] => format!("{} of the {} specification cannot be used", wrong.key, error.what),
            wrong => format!("{} keys of the {} specification cannot be used", wrong.len(), error.what),
        };
        Problem::new(ProblemKind::InvalidInput, codes::AGENT_SPEC, message).because(list(&error.wrong))
    }
}

/// Reads a specification key by key, and remembers each that is wrong.
pub struct Keys {
    what: &'static str,
    given: Map<String, Value>,
    wrong: Vec<WrongKey>,
}

impl Keys {
    /// Begins with a JSON object.
    ///
    /// # Errors
    /// It is none.
    pub fn of(what: &'static str, value: Value) -> Result<Self, SpecError> {
        match value {
            Value::Object(given) => Ok(Self { what, given, wrong: Vec::new() }),
            other => {
                let wrong = WrongKey { key: what.to_owned(), reason: format!("is {other}, not a mapping") };
                Err(SpecError { what, wrong: vec![wrong] })
            }
        }
    }

    /// The value of a key, or its default where it is missing or cannot be read.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str, default: T, expected: &str) -> T {
        self.take_if(key, default, expected, |_| true)
    }

    /// As [`Keys::take`], with a condition that the value has to meet.
    pub fn take_if<T: DeserializeOwned>(
        &mut self,
        key: &str,
        default: T,
        expected: &str,
        fits: impl FnOnce(&T) -> bool,
    ) -> T {
        let Some(value) = self.given.remove(key) else { return default };
        match serde_json::from_value::<T>(value.clone()) {
            Ok(read) if fits(&read) => read,
            _ => {
                self.wrong(key, &format!("is {value}, not {expected}"));
                default
            }
        }
    }

    /// A key that has to be there.
    pub fn need<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Option<T> {
        if !self.given.contains_key(key) {
            self.wrong(key, &format!("is missing; it is {expected}"));
            return None;
        }
        self.take(key, None, expected)
    }

    /// Seconds, as milliseconds.
    pub fn seconds(&mut self, key: &str, default: Milliseconds) -> Milliseconds {
        let expected = "seconds, 0 or more";
        let read = self.take_if(key, None, expected, |read: &Option<f64>| read.and_then(milliseconds).is_some());
        read.and_then(milliseconds).unwrap_or(default)
    }

    /// What is nested in a key, read by its own rules; its wrong keys are named `outer.inner`.
    pub fn nested<T: Default>(&mut self, key: &str, read: impl FnOnce(Value) -> Result<T, SpecError>) -> T {
        let value = self.given.remove(key).unwrap_or_else(|| json!({}));
        read(value).unwrap_or_else(|error| {
            for wrong in error.wrong {
                let name = if wrong.key == key { key.to_owned() } else { format!("{key}.{}", wrong.key) };
                self.wrong(&name, &wrong.reason);
            }
            T::default()
        })
    }

    /// Remembers a wrong key.
    pub fn wrong(&mut self, key: &str, reason: &str) {
        self.wrong.push(WrongKey { key: key.to_owned(), reason: reason.to_owned() });
    }

    /// The specification, if every key of it was known and could be used.
    ///
    /// # Errors
    /// One entry for each that could not.
    pub fn finish<T>(mut self, spec: T) -> Result<T, SpecError> {
        for key in std::mem::take(&mut self.given).keys() {
            self.wrong(key, "is not a key of it");
        }
        if self.wrong.is_empty() { Ok(spec) } else { Err(SpecError { what: self.what, wrong: self.wrong }) }
    }
}

/// `None` where seconds are no time.
fn milliseconds(seconds: f64) -> Option<Milliseconds> {
    (seconds.is_finite() && seconds >= 0.0).then_some((seconds * 1_000.0) as Milliseconds)
}

fn as_seconds<S: Serializer>(milliseconds: &Milliseconds, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*milliseconds as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_keys(error: SpecError) -> Vec<String> {
        error.wrong.into_iter().map(|wrong| wrong.key).collect()
    }

    #[test]
    fn a_supervisor_without_keys_has_every_default_and_says_so() {
        let spec = SupervisorSpec::read(json!({})).unwrap();
        let read_back = serde_json::to_value(spec).unwrap();
        assert_eq!(read_back, json!({"strategy": "pool", "intensity": 5, "period": 300.0}));
        assert_eq!(SupervisorSpec::read(read_back).unwrap(), spec);
    }

    #[test]
    fn each_wrong_key_of_a_supervisor_has_its_own_error() {
        let faulty = json!({"strategy": "one_for_two", "intensity": -1, "period": 0, "colour": "red"});
        let error = SupervisorSpec::read(faulty).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the supervisor specification cannot be used: strategy is \"one_for_two\", not one_for_one, one_for_all, \
             rest_for_one or pool; intensity is -1, not a count of restarts, 0 or more; period is 0; a window has a \
             length; colour is not a key of it"
        );
        assert_eq!(Problem::from(error).message, "4 keys of the supervisor specification cannot be used");
        for (key, value) in [("strategy", json!(1)), ("intensity", json!(1.5)), ("period", json!("soon"))] {
            assert_eq!(wrong_keys(SupervisorSpec::read(json!({key: value})).unwrap_err()), [key]);
        }
        assert_eq!(wrong_keys(SupervisorSpec::read(json!([])).unwrap_err()), ["supervisor"]);
    }

    #[test]
    fn a_shutdown_is_a_word_or_seconds_and_is_read_back_as_it_was_given() {
        for given in [json!("kill"), json!("infinity"), json!(0.5)] {
            let read: Shutdown = serde_json::from_value(given.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), given);
        }
        for given in [json!("soon"), json!(-1), json!(null), json!([5])] {
            assert!(serde_json::from_value::<Shutdown>(given.clone()).is_err(), "{given}");
        }
    }

    #[test]
    fn limits_are_refused_key_by_key() {
        let limits = WorkerLimits::read(json!({"memory_mb": 512})).unwrap();
        assert_eq!(limits, WorkerLimits { memory_mb: Some(512), cpu_seconds: None });
        let error = WorkerLimits::read(json!({"memory_mb": 0, "cpu_seconds": "all", "disk": 1})).unwrap_err();
        assert_eq!(wrong_keys(error), ["memory_mb", "cpu_seconds", "disk"]);
    }

    #[test]
    fn a_strategy_concerns_one_child_all_of_them_or_those_that_came_later() {
        assert_eq!(Strategy::OneForOne.affected(1, 4), 1..2);
        assert_eq!(Strategy::Pool.affected(3, 4), 3..4);
        assert_eq!(Strategy::OneForAll.affected(1, 4), 0..4);
        assert_eq!(Strategy::RestForOne.affected(1, 4), 1..4);
    }

    #[test]
    fn restart_types_answer_each_exit() {
        use Exit::{Abnormal, Normal, Replaced};
        let table = [
            (Restart::Permanent, [true, true, true]),
            (Restart::Transient, [false, true, true]),
            (Restart::Temporary, [false, false, true]),
        ];
        for (restart, expected) in table {
            assert_eq!([Normal, Abnormal, Replaced].map(|exit| restart.after(exit)), expected, "{restart:?}");
        }
    }
}
