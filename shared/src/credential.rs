//! Tokens that may be exchanged while a process runs.
//!
//! A file holds one token a line. The first is what its reader shows; whoever is shown one takes them all.
//! So a token is exchanged without an outage: the new one is added where tokens are taken, then put first
//! where they are shown, then the old one goes.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::secret::{SecretError, Token};

/// The most tokens at once: two are needed for an exchange, and each one is compared at each request.
pub const MAX_TOKENS: usize = 8;

/// One or several tokens, the same for all of its clones.
#[derive(Clone)]
pub struct Credential(Arc<Inner>);

struct Inner {
    file: Option<PathBuf>,
    /// Never empty.
    tokens: RwLock<Vec<Token>>,
}

/// What a look at the file found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// What was known, or there is no file.
    Same,
    /// Other tokens, which are in force now.
    Changed,
}

impl Credential {
    /// The tokens of a text: separated by line ends, or by spaces where a variable holds them.
    ///
    /// # Errors
    /// [`SecretError`] when there is none, too many, or one that is not fit to be one.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        Ok(Self::from_tokens(parse(text)?, None))
    }

    /// The tokens of a file, one a line.
    ///
    /// # Errors
    /// [`SecretError`] when the file cannot be read or does not hold tokens.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        Ok(Self::from_tokens(read(path)?, Some(path.to_owned())))
    }

    fn from_tokens(tokens: Vec<Token>, file: Option<PathBuf>) -> Self {
        let tokens = RwLock::new(tokens);
        Self(Arc::new(Inner { file, tokens }))
    }

    /// Reads the file again, if the tokens come from one. What was in force stays so when it cannot be read
    /// or holds something else.
    ///
    /// # Errors
    /// [`SecretError`] as at the start.
    pub fn look(&self) -> Result<Look, SecretError> {
        let Some(file) = &self.0.file else {
            return Ok(Look::Same);
        };
        let found = read(file)?;
        let same = {
            let known = self.0.tokens.read().unwrap_or_else(PoisonError::into_inner);
            known
                .iter()
                .map(Token::expose)
                .eq(found.iter().map(Token::expose))
        };
        if same {
            return Ok(Look::Same);
        }
        *self.0.tokens.write().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(Look::Changed)
    }

    /// The file, if the tokens come from one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// How many tokens are in force.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.tokens.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The token to show.
    #[must_use]
    pub fn shown(&self) -> Option<Token> {
        let tokens = self.0.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.first().cloned()
    }

    /// Whether an `Authorization` header carries one of the tokens. All are compared, whichever fits.
    #[must_use]
    pub fn admits(&self, authorization: Option<&str>) -> bool {
        let tokens = self.0.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let fitting = tokens.iter().filter(|token| token.admits(authorization));
        fitting.count() > 0
    }
}

impl From<Token> for Credential {
    fn from(token: Token) -> Self {
        Self::from_tokens(vec![token], None)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({} tokens, file {:?})", self.count(), self.0.file)
    }
}

fn read(path: &Path) -> Result<Vec<Token>, SecretError> {
    let text = std::fs::read_to_string(path).map_err(|source| SecretError::File {
        path: path.display().to_string(),
        source,
    })?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Token>, SecretError> {
    let tokens: Vec<Token> = text
        .split_whitespace()
        .map(Token::new)
        .collect::<Result<_, _>>()?;
    if (1..=MAX_TOKENS).contains(&tokens.len()) {
        Ok(tokens)
    } else {
        Err(SecretError::TokenCount)
    }
}

/// The permission bits of a file that every user of the machine can read; `None` for one that they cannot,
/// or that is not there.
#[must_use]
pub fn readable_by_all(path: &Path) -> Option<u32> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o004 != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "old-token-0123456789";
    const NEW: &str = "new-token-0123456789";

    fn header(token: &str) -> String {
        format!("Bearer {token}")
    }

    #[test]
    fn the_first_is_shown_and_all_are_taken() {
        let both = Credential::parse(&format!("{NEW}\n{OLD}\n")).unwrap();
        assert_eq!(both.shown().unwrap().expose(), NEW);
        assert!(both.admits(Some(&header(OLD))) && both.admits(Some(&header(NEW))));
        assert!(!both.admits(Some(&header("none-token-012345678"))) && !both.admits(None));
        assert_eq!(both.look().unwrap(), Look::Same, "a variable is read once");
    }

    #[test]
    fn a_file_without_good_tokens_is_refused() {
        let many = format!("{OLD}\n").repeat(MAX_TOKENS + 1);
        for bad in ["", "\n \n", "short", &format!("{OLD}\nshort"), &many] {
            assert!(Credential::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_is_read_again_and_a_bad_one_changes_nothing() {
        let file = std::env::temp_dir().join(format!("usher-credential-{}", std::process::id()));
        std::fs::write(&file, format!("{OLD}\n")).unwrap();
        let credential = Credential::read(&file).unwrap();
        let clone = credential.clone();
        assert_eq!(credential.look().unwrap(), Look::Same);
        std::fs::write(&file, "").unwrap();
        assert!(credential.look().is_err());
        std::fs::remove_file(&file).unwrap();
        assert!(credential.look().is_err());
        assert!(clone.admits(Some(&header(OLD))));
        std::fs::write(&file, format!("\n  {NEW}\r\n{OLD}")).unwrap();
        assert_eq!(credential.look().unwrap(), Look::Changed);
        assert_eq!(clone.shown().unwrap().expose(), NEW);
        assert!(clone.admits(Some(&header(OLD))));
        std::fs::write(&file, NEW).unwrap();
        assert_eq!(credential.look().unwrap(), Look::Changed);
        assert!(!clone.admits(Some(&header(OLD))));
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn nothing_secret_is_printed() {
        let printed = format!("{:?}", Credential::parse(OLD).unwrap());
        assert!(!printed.contains("token-0"), "{printed}");
    }
}
