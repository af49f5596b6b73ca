//! Patience: what fails in passing is tried again, with growing pauses, as long as there is time.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::shared::say;
use crate::store::Trouble;

/// The pause before the second attempt; each further one is twice as long, up to [`LONGEST`].
#[cfg(not(test))]
const FIRST: Duration = Duration::from_millis(200);
#[cfg(test)]
const FIRST: Duration = Duration::from_micros(200);
const LONGEST: Duration = Duration::from_secs(15);

/// The attempts at one thing.
pub(crate) struct Patience {
    /// What is attempted, for messages.
    what: &'static str,
    until: Instant,
    pause: Duration,
    has_said: bool,
}

impl Patience {
    /// For `what`, until then.
    pub(crate) fn new(what: &'static str, until: Instant) -> Self {
        Patience {
            what,
            until,
            pause: FIRST,
            has_said: false,
        }
    }

    /// When there is no time left.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// There was progress: the next failure is the first again.
    pub(crate) fn renew(&mut self) {
        self.pause = FIRST;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// There will be none: no other attempt can succeed, or there is no time for it.
    pub(crate) fn wait(&mut self, trouble: Trouble) -> Result<(), String> {
        let reason = match trouble {
            Trouble::Lasting(reason) => return Err(reason),
            Trouble::Passing(reason) => reason,
        };
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(reason);
        }
        if !self.has_said {
            self.has_said = true;
            say(&format!("{}: {reason}; trying again", self.what));
        }
        std::thread::sleep(varied(self.pause).min(left));
        self.pause = (self.pause * 2).min(LONGEST);
        Ok(())
    }
}

/// Between half and the whole of it: clients that fail together do not return together.
fn varied(pause: Duration) -> Duration {
    // The seeds of the standard library's hash tables are random.
    let random = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    pause.mul_f64(0.5 + random / 2.0)
}

/// Attempts until it succeeds.
///
/// # Errors
/// As [`Patience::wait`].
pub(crate) fn persist<T>(
    what: &'static str,
    until: Instant,
    mut attempt: impl FnMut() -> Result<T, Trouble>,
) -> Result<T, String> {
    let mut patience = Patience::new(what, until);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(trouble) => patience.wait(trouble)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(
        until: Instant,
        trouble: impl Fn(u32) -> Option<Trouble>,
    ) -> (u32, Result<(), String>) {
        let mut count = 0;
        let result = persist("storing", until, || {
            count += 1;
            trouble(count).map_or(Ok(()), Err)
        });
        (count, result)
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        let passing = || Some(Trouble::Passing(String::from("busy")));
        let lasting = || Some(Trouble::Lasting(String::from("refused")));
        let later = Instant::now() + Duration::from_secs(600);
        let some = attempts(later, |count| passing().filter(|_| count < 4));
        assert_eq!(some, (4, Ok(())));
        let some = attempts(later, |count| if count < 3 { passing() } else { lasting() });
        assert_eq!(some, (3, Err(String::from("refused"))));
        let late = attempts(Instant::now(), |_| passing());
        assert_eq!(late, (1, Err(String::from("busy"))));
    }

    #[test]
    fn pauses_are_never_longer() {
        for _ in 0..1000 {
            let pause = varied(LONGEST);
            assert!(pause <= LONGEST && pause >= LONGEST / 2, "{pause:?}");
        }
    }
}
