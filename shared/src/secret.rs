//! Secrets: tokens, the master key and the keys made from it. None of them can be printed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use subtle::ConstantTimeEq as _;

use crate::id::NodeId;

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Too short to resist guessing, too long, or not fit for a header.
    #[error(
        "a token is 16 to 512 visible ASCII characters without spaces; make one with `openssl rand -hex 32`"
    )]
    Token,
    /// None, or more than there may be.
    #[error("there must be 1 to 8 tokens, one a line: the first is shown, all are taken")]
    TokenCount,
    /// Not 32 bytes in hexadecimal.
    #[error("a master key is 64 hexadecimal digits (32 bytes); make one with `openssl rand -hex 32`")]
    MasterKey,
    /// The file could not be read.
    #[error("cannot read {path}: check that the file exists and that this user may read it")]
    File {
        /// The file as it was named.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A bearer token. Compares in constant time and never prints itself.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token from its text: 16 to 512 visible ASCII characters.
    ///
    /// # Errors
    /// [`SecretError::Token`] when the text is not fit to be one.
    pub fn new(text: &str) -> Result<Self, SecretError> {
        let fits = (16..=512).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(SecretError::Token)
        }
    }

    /// The text, for the header that carries it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether an `Authorization` header carries this token. Takes as long for a near miss as for a far one.
    #[must_use]
    pub fn admits(&self, authorization: Option<&str>) -> bool {
        let given = authorization.and_then(|header| {
            let (scheme, token) = header.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let given = Sha256::digest(given.unwrap_or_default().as_bytes());
        Sha256::digest(self.0.as_bytes()).ct_eq(&given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// 32 bytes that sign something. Never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A key from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// HMAC-SHA256 of the parts, one after the other.
    #[must_use]
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.mac(parts).finalize().into_bytes().into()
    }

    /// Whether `signature` is this key's over the parts, in constant time.
    #[must_use]
    pub fn verify(&self, parts: &[&[u8]], signature: &[u8]) -> bool {
        self.mac(parts).verify_slice(signature).is_ok()
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // HMAC takes a key of any length, so this never panics: the error type is shared with MACs that do not.
        #[allow(clippy::expect_used)]
        let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(&self.0).expect("HMAC takes any key");
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        let bytes = URL_SAFE_NO_PAD.decode(&*text).map_err(serde::de::Error::custom)?;
        let bytes = <[u8; 32]>::try_from(bytes)
            .map_err(|_| serde::de::Error::custom("a key is 32 bytes in unpadded base64url"))?;
        Ok(Self(bytes))
    }
}

/// The one secret of a cluster: every ticket key and the grant key come from it by HKDF-SHA256.
#[derive(Clone)]
pub struct MasterKey(Key);

impl MasterKey {
    /// A master key from 32 random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Key::from_bytes(bytes))
    }

    /// A master key from 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`SecretError::MasterKey`] when the text is anything else.
    pub fn from_hex(text: &str) -> Result<Self, SecretError> {
        let text = text.trim().as_bytes();
        if text.len() != 64 {
            return Err(SecretError::MasterKey);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
            let digits = std::str::from_utf8(pair)
                .ok()
                .filter(|pair| !pair.starts_with('+'));
            *byte = digits
                .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                .ok_or(SecretError::MasterKey)?;
        }
        Ok(Self::from_bytes(bytes))
    }

    /// The 64 hexadecimal digits, for the file that keeps them.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The key of one node's tickets. A node that knows its own can forge nothing for another.
    #[must_use]
    pub fn ticket_key(&self, kid: &str, node: &NodeId) -> Key {
        self.derive(&[
            b"usher ticket v1",
            &[0],
            kid.as_bytes(),
            &[0],
            node.as_str().as_bytes(),
        ])
    }

    /// The key that signs grants. It never leaves the broker.
    #[must_use]
    pub fn grant_key(&self) -> Key {
        self.derive(&[b"usher grant v1"])
    }

    /// Tells this key from others, and nothing else about it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let Key(bytes) = self.derive(&[b"usher key id v1"]);
        bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn derive(&self, info: &[&[u8]]) -> Key {
        let mut bytes = [0; 32];
        // HKDF-SHA256 gives up to 255 x 32 bytes, and 32 are asked for.
        #[allow(clippy::expect_used)]
        Hkdf::<Sha256>::new(None, &self.0.0)
            .expand_multi_info(info, &mut bytes)
            .expect("32 bytes are within HKDF's bound");
        Key(bytes)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_admits_itself_and_nothing_else() {
        let token = Token::new("0123456789abcdef").unwrap();
        assert!(token.admits(Some("Bearer 0123456789abcdef")));
        assert!(token.admits(Some("bearer 0123456789abcdef")));
        for bad in [
            None,
            Some(""),
            Some("Bearer "),
            Some("0123456789abcdef"),
            Some("Bearer 0123456789abcdeF"),
        ] {
            assert!(!token.admits(bad), "{bad:?}");
        }
    }

    #[test]
    fn short_or_unprintable_tokens_are_refused() {
        for bad in ["", "short", "0123456789 abcdef", "0123456789abcde\n"] {
            assert!(Token::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let token = Token::new("0123456789abcdef").unwrap();
        let master = MasterKey::from_bytes([7; 32]);
        let printed = format!("{token:?} {master:?} {:?}", master.grant_key());
        assert_eq!(printed, "Token(..) MasterKey(..) Key(..)");
        let other = MasterKey::from_bytes([8; 32]);
        assert_ne!(master.fingerprint(), other.fingerprint());
        assert!(!master.to_hex().contains(&master.fingerprint()));
    }

    #[test]
    fn each_node_and_each_kid_has_its_own_key() {
        let master = MasterKey::from_hex(&"5a".repeat(32)).unwrap();
        let (a, b): (NodeId, NodeId) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert_ne!(master.ticket_key("1", &a), master.ticket_key("1", &b));
        assert_ne!(master.ticket_key("1", &a), master.ticket_key("2", &a));
        assert_eq!(master.ticket_key("1", &a), master.ticket_key("1", &a));
        assert_eq!(
            MasterKey::from_hex(&master.to_hex()).unwrap().to_hex(),
            master.to_hex()
        );
    }
}
