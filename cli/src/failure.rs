//! How a verb fails: what happened, what lay behind it, what to do, and with which exit code.

use std::fmt;
use std::process::ExitCode;

/// A failed verb, ready to be printed.
#[derive(Debug)]
pub(crate) struct Failure {
    error: anyhow::Error,
    remedy: Option<String>,
    code: u8,
}

impl Failure {
    /// The work could not be done: exit code 1.
    pub(crate) fn new(error: impl Into<anyhow::Error>) -> Self {
        Self {
            error: error.into(),
            remedy: None,
            code: 1,
        }
    }

    /// A sentence of our own: exit code 1.
    pub(crate) fn say(text: impl fmt::Display) -> Self {
        Self::new(anyhow::anyhow!("{text}"))
    }

    /// The process was told something it cannot start with, or a port is taken: exit code 2, the
    /// same that a wrong flag gives.
    pub(crate) fn settings(error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: 2,
            ..Self::new(error)
        }
    }

    /// The same failure with what to do about it.
    pub(crate) fn try_this(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        for cause in self.error.chain().skip(1) {
            write!(f, "\n  because: {cause}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  try: {remedy}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let error = Err::<(), _>(std::io::Error::other("disk on fire"))
            .context("cannot open the store")
            .unwrap_err();
        let failure = Failure::settings(error).try_this("another disk");
        assert_eq!(
            failure.to_string(),
            "error: cannot open the store\n  because: disk on fire\n  try: another disk"
        );
    }
}
