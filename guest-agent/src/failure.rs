//! A step of the boot that failed, and why: what the user gets to read.

use std::fmt::Display;

use apppot_contract::Outcome;

/// Why the job could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What was being done, such as `mounting the root filesystem`.
    pub(crate) step: String,
    /// Why it failed.
    pub(crate) reason: String,
}

impl Failure {
    pub(crate) fn new(step: impl Into<String>, reason: impl Display) -> Self {
        Failure {
            step: step.into(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome::Failed {
            step: self.step,
            reason: self.reason,
        }
    }
}

/// Says which step an error stopped.
pub(crate) trait Step<T> {
    /// The error becomes a [`Failure`] of this step.
    fn step(self, step: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Display> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, error))
    }
}
