//! When what must be done.

use std::time::{Duration, Instant, SystemTime};

use apppot_contract::store::SAVING;

/// Longer than any machine lives, and short enough for every clock.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The ends of things. The machine's own is [`SAVING`] after deadline and grace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// The job's deadline; nothing needs to be read after it.
    pub(crate) deadline: Instant,
    /// Output and results are stored until then.
    pub(crate) outputs: Instant,
    /// The report is, which says what of the others was not.
    pub(crate) report: Instant,
    /// What passes between asking the job to end and ending it.
    pub(crate) grace: Duration,
}

impl Times {
    /// Of a contract.
    pub(crate) fn new(deadline: SystemTime, grace: Duration) -> Self {
        let now = Instant::now();
        let left = deadline.duration_since(SystemTime::now());
        let left = left.unwrap_or_default().min(LONGEST);
        let grace = grace.min(LONGEST);
        let saved = now + left + grace;
        Times {
            deadline: now + left,
            outputs: saved + SAVING - Duration::from_secs(60),
            report: saved + SAVING - Duration::from_secs(20),
            grace,
        }
    }

    /// Whether the deadline has passed.
    pub(crate) fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_deadline_and_grace_have_an_end() {
        let now = SystemTime::now();
        let times = Times::new(now + Duration::from_secs(100), Duration::from_secs(4));
        assert!(times.deadline < times.outputs && times.outputs < times.report && !times.is_late());
        assert!(times.report < Instant::now() + Duration::from_secs(104) + SAVING);
        assert!(Times::new(SystemTime::UNIX_EPOCH, Duration::ZERO).is_late());
        let far = SystemTime::UNIX_EPOCH + Duration::from_millis(1 << 62);
        assert!(!Times::new(far, Duration::from_millis(u64::MAX)).is_late());
    }
}
