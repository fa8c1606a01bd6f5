//! The two windows and the backoff, as pure values. Time is milliseconds of a monotonic clock
//! that the caller injects.
//!
//! **SUP-2**: the error window decides *that* an agent restarts; the restart window decides *whether it still may*.
//! They are two types, and neither can be given to the other.

use crate::supervision::SupervisorSpec;
use std::collections::VecDeque;

/// Errors that restart an agent.
pub const ERRORS_TO_RESTART: usize = 5;
/// Errors after which the agent is reported as degraded.
pub const ERRORS_TO_DEGRADE: usize = 3;
/// Length of the error window.
pub const ERROR_WINDOW_MS: u64 = 60_000;
/// Restarts that end in quarantine.
pub const RESTARTS_TO_QUARANTINE: usize = 5;
/// Length of the restart window.
pub const RESTART_WINDOW_MS: u64 = 300_000;
/// First delayed restart; the one before it is immediate.
pub const BACKOFF_BASE_MS: u64 = 500;
/// No restart waits longer.
pub const BACKOFF_CAP_MS: u64 = 60_000;
/// Healthy running after which earlier restarts are forgotten.
pub const HEALTHY_MS: u64 = 60_000;

/// What an error means for the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Counted, nothing else.
    Counted,
    /// Report the agent as degraded.
    Degraded,
    /// Restart the agent.
    Restart,
}

/// Errors of one generation of one agent, sliding: an error leaves the window 60 s after it happened.
#[derive(Debug, Clone, Default)]
pub struct ErrorWindow {
    errors: VecDeque<u64>,
}

impl ErrorWindow {
    /// Counts an error.
    pub fn record(&mut self, now: u64) -> Verdict {
        self.forget(now);
        self.errors.push_back(now);
        match self.errors.len() {
            count if count >= ERRORS_TO_RESTART => Verdict::Restart,
            ERRORS_TO_DEGRADE => Verdict::Degraded,
            _ => Verdict::Counted,
        }
    }

    /// A success empties the window.
    pub fn succeed(&mut self) {
        self.errors.clear();
    }

    /// Errors that still count.
    pub fn count(&self, now: u64) -> usize {
        self.errors.iter().filter(|at| now.saturating_sub(**at) <= ERROR_WINDOW_MS).count()
    }

    fn forget(&mut self, now: u64) {
        while self.errors.front().is_some_and(|at| now.saturating_sub(*at) > ERROR_WINDOW_MS) {
            self.errors.pop_front();
        }
    }
}

/// Delay before a restart: none for the first, then 0.5 s x 2^n with full jitter, at most 60 s. Full jitter as in the
/// AWS Architecture Blog, "Exponential Backoff And Jitter" (2015): uniform between 0 and the exponential bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff;

impl Backoff {
    /// `restarts` is how many there were before; `jitter` is uniform in 0..1.
    pub fn delay_ms(restarts: usize, jitter: f64) -> u64 {
        let Some(exponent) = restarts.checked_sub(1) else { return 0 };
        let bound = BACKOFF_BASE_MS.saturating_mul(1 << exponent.min(20)).min(BACKOFF_CAP_MS);
        (bound as f64 * jitter.clamp(0.0, 1.0)) as u64
    }
}

/// What to do with an agent that went down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartDecision {
    /// Start it again after the delay.
    After {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// Leave it down until somebody releases it.
    Quarantine,
}

/// Restarts of what restarts together, across generations: of one agent, or of a group.
#[derive(Debug, Clone)]
pub struct RestartPolicy {
    intensity: usize,
    period_ms: u64,
    restarts: VecDeque<u64>,
    started_at: Option<u64>,
}

impl From<&SupervisorSpec> for RestartPolicy {
    fn from(spec: &SupervisorSpec) -> Self {
        Self { intensity: spec.intensity as usize, period_ms: spec.period, restarts: VecDeque::new(), started_at: None }
    }
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self::from(&SupervisorSpec::default())
    }
}

impl RestartPolicy {
    /// A person answers for it: earlier restarts are forgiven.
    pub fn forgive(&mut self) {
        self.restarts.clear();
        self.started_at = None;
    }

    /// The agent runs.
    pub fn started(&mut self, now: u64) {
        self.started_at = Some(now);
    }

    /// The agent went down, or could not start (SUP-3: a spawn failure is a counted failure). `jitter` is uniform in
    /// 0..1.
    pub fn down(&mut self, now: u64, jitter: f64) -> RestartDecision {
        if self.started_at.take().is_some_and(|since| now.saturating_sub(since) >= HEALTHY_MS) {
            self.restarts.clear();
        }
        while self.restarts.front().is_some_and(|at| now.saturating_sub(*at) > self.period_ms) {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= self.intensity {
            return RestartDecision::Quarantine;
        }
        let delay_ms = Backoff::delay_ms(self.restarts.len(), jitter);
        self.restarts.push_back(now);
        RestartDecision::After { delay_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn four_errors_do_not_restart_and_the_fifth_does() {
        let mut window = ErrorWindow::default();
        let verdicts: Vec<_> = (0..5).map(|at| window.record(at)).collect();
        use Verdict::{Counted, Degraded, Restart};
        assert_eq!(verdicts, [Counted, Counted, Degraded, Counted, Restart]);
    }

    #[test]
    fn the_fifth_error_restarts_at_59_9_s_and_not_at_60_1_s() {
        for (fifth, verdict) in [(59_900, Verdict::Restart), (60_100, Verdict::Counted)] {
            let mut window = ErrorWindow::default();
            for at in [0, 1_000, 2_000, 3_000] {
                window.record(at);
            }
            assert_eq!(window.record(fifth), verdict);
        }
    }

    #[test]
    fn a_success_empties_the_error_window() {
        let mut window = ErrorWindow::default();
        for at in 0..4 {
            window.record(at);
        }
        window.succeed();
        assert_eq!(window.count(4), 0);
        assert_eq!(window.record(5), Verdict::Counted);
    }

    #[test]
    fn the_first_restart_is_immediate_and_later_ones_stay_under_the_cap() {
        assert_eq!(Backoff::delay_ms(0, 1.0), 0);
        assert_eq!(Backoff::delay_ms(1, 1.0), 500);
        assert_eq!(Backoff::delay_ms(3, 1.0), 2_000);
        assert_eq!(Backoff::delay_ms(60, 1.0), BACKOFF_CAP_MS);
    }

    #[test]
    fn five_restarts_in_the_window_end_in_quarantine() {
        let mut policy = RestartPolicy::default();
        for at in 0..5 {
            policy.started(at * 1_000);
            assert!(matches!(policy.down(at * 1_000 + 1, 0.5), RestartDecision::After { .. }));
        }
        assert_eq!(policy.down(6_000, 0.5), RestartDecision::Quarantine);
    }

    #[test]
    fn sup_2_a_minute_of_healthy_running_forgets_restarts_but_a_short_life_does_not() {
        let mut policy = RestartPolicy::default();
        for at in 0..5 {
            policy.down(at, 0.0);
        }
        policy.started(10);
        assert_eq!(policy.clone().down(10 + HEALTHY_MS - 1, 0.0), RestartDecision::Quarantine);
        assert_eq!(policy.down(10 + HEALTHY_MS, 0.0), RestartDecision::After { delay_ms: 0 });
    }

    proptest! {
        #[test]
        fn no_delay_exceeds_the_cap(restarts in 0usize..10_000, jitter in 0.0f64..=1.0) {
            prop_assert!(Backoff::delay_ms(restarts, jitter) <= BACKOFF_CAP_MS);
        }

        #[test]
        fn the_count_is_what_a_plain_list_would_say(times in proptest::collection::vec(0u64..200_000, 1..60)) {
            let mut times = times;
            times.sort_unstable();
            let mut window = ErrorWindow::default();
            for (index, now) in times.iter().enumerate() {
                let verdict = window.record(*now);
                let plain = times[..=index].iter().filter(|at| now - **at <= ERROR_WINDOW_MS).count();
                prop_assert_eq!(window.count(*now), plain);
                prop_assert_eq!(verdict == Verdict::Restart, plain >= ERRORS_TO_RESTART);
            }
        }
    }
}
