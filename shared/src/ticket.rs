//! The short-lived pass in a node URL: a JWT signed with HS256 (RFC 7515, RFC 7519), so that a node
//! in any language can check it with a stock library.
//!
//! Header `{"alg":"HS256","kid":...,"typ":"JWT"}`; the key is HKDF-SHA256 of the cluster's master
//! key for (`kid`, node), see [`crate::secret::MasterKey::ticket_key`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::id::{ConnectionId, Incarnation, NodeId, TeamId};
use crate::quantity::Epoch;
use crate::secret::Key;

/// No ticket lives longer, whatever it says of itself: RFC 8725 section 3.10 asks the verifier to bound it.
pub const MAX_LIFE_S: u64 = 60;
/// The same for a ticket of [`Scope::Resume`]: as long as a broker may reasonably be away.
pub const RESUME_LIFE_S: u64 = 86_400;
/// How long a ticket lives when nobody said otherwise: enough for a slow handshake, short in a log.
pub const LIFE_S: u64 = 30;
/// How far two wall clocks may disagree before a fresh ticket looks stale.
pub const LEEWAY_S: u64 = 5;
/// A ticket is about 350 bytes; anything larger is refused before it is decoded.
pub const MAX_BYTES: usize = 2048;
/// A redirect chain is cut here.
pub const MAX_HOPS: u8 = 3;

/// What a ticket admits to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Opens a WebSocket.
    #[default]
    Connect,
    /// Posts one message to the team's connections.
    Post,
    /// Opens a WebSocket at the node that signed it itself, while that node has lost its broker. The
    /// `resume` of a `welcome` frame; no other node and no broker can check it.
    Resume,
}

impl Scope {
    fn is_connect(&self) -> bool {
        *self == Self::Connect
    }
}

/// What a ticket says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// The team.
    pub sub: TeamId,
    /// The node that the ticket is for.
    pub aud: NodeId,
    /// The incarnation of that node which the broker knew.
    pub inc: Incarnation,
    /// The epoch of the assignment.
    pub epoch: Epoch,
    /// When it was issued, seconds since the Unix epoch.
    pub iat: u64,
    /// When it ends, seconds since the Unix epoch; at most [`MAX_LIFE_S`] after `iat`.
    pub exp: u64,
    /// Unique per ticket: 16 hexadecimal digits.
    pub jti: String,
    /// How many redirects in a row led here, from 0.
    #[serde(default)]
    pub hop: u8,
    /// The connection that this one replaces, where the client said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ConnectionId>,
    /// What it admits to.
    #[serde(default, skip_serializing_if = "Scope::is_connect")]
    pub scope: Scope,
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    alg: &'a str,
    kid: &'a str,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<&'a str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crit: Option<serde_json::Value>,
}

/// Why a text is not a ticket of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not three base64url parts of JSON, or too large.
    #[error("the ticket is malformed")]
    Malformed,
    /// Not HS256, or a header that asks for something this verifier does not do.
    #[error("the ticket's header is not one of ours")]
    Header,
    /// Signed with a key that is not known here.
    #[error("the ticket's key is not known here")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the ticket's signature does not fit")]
    Signature,
    /// A life longer than its scope allows, or issued in the future.
    #[error("the ticket's times are out of bounds")]
    Times,
}

/// Whether a genuine ticket is still in its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// Within its life and leeway.
    Fresh,
    /// Past it.
    Expired,
}

/// The compact form of `claims`, signed with the key that `kid` names.
#[must_use]
pub fn sign(claims: &Claims, kid: &str, key: &Key) -> String {
    let header = Header {
        alg: "HS256",
        kid,
        typ: Some("JWT"),
        crit: None,
    };
    let mut text = String::with_capacity(448);
    for part in [serde_json::to_vec(&header), serde_json::to_vec(claims)] {
        // Both are plain structs with text keys: there is nothing in them that JSON cannot carry.
        URL_SAFE_NO_PAD.encode_string(part.unwrap_or_default(), &mut text);
        text.push('.');
    }
    text.pop();
    let signature = key.sign(&[text.as_bytes()]);
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut text);
    text
}

/// The claims of a genuine ticket, and whether it is still in its time.
///
/// `key` finds the key for a `kid`. Expiry is not an error here, because an expired ticket of a
/// node's own team still says where its bearer was, and may still be good while the broker is away.
///
/// # Errors
/// [`TicketError`] when the text was not signed by us, or says what no ticket of ours says.
pub fn verify<'k>(
    text: &str,
    now_s: u64,
    key: impl FnOnce(&str) -> Option<&'k Key>,
) -> Result<(Claims, Age), TicketError> {
    if text.len() > MAX_BYTES {
        return Err(TicketError::Malformed);
    }
    let (signed, signature) = text.rsplit_once('.').ok_or(TicketError::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(TicketError::Malformed)?;
    let header = URL_SAFE_NO_PAD
        .decode(header)
        .map_err(|_| TicketError::Malformed)?;
    let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| TicketError::Malformed)?;
    if header.alg != "HS256" || header.crit.is_some() {
        return Err(TicketError::Header);
    }
    let key = key(header.kid).ok_or(TicketError::UnknownKey)?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| TicketError::Malformed)?;
    if !key.verify(&[signed.as_bytes()], &signature) {
        return Err(TicketError::Signature);
    }
    let claims = URL_SAFE_NO_PAD
        .decode(claims)
        .map_err(|_| TicketError::Malformed)?;
    let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TicketError::Malformed)?;
    let life = claims.exp.checked_sub(claims.iat).ok_or(TicketError::Times)?;
    let longest = match claims.scope {
        Scope::Resume => RESUME_LIFE_S,
        Scope::Connect | Scope::Post => MAX_LIFE_S,
    };
    if life > longest || claims.iat > now_s.saturating_add(LEEWAY_S) {
        return Err(TicketError::Times);
    }
    let age = if now_s <= claims.exp.saturating_add(LEEWAY_S) {
        Age::Fresh
    } else {
        Age::Expired
    };
    Ok((claims, age))
}

/// The node that a ticket claims to be for, without any check: it tells which key to check it with.
#[must_use]
pub fn peek_node(text: &str) -> Option<NodeId> {
    #[derive(Deserialize)]
    struct Audience {
        aud: NodeId,
    }
    if text.len() > MAX_BYTES {
        return None;
    }
    let claims = URL_SAFE_NO_PAD.decode(text.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Audience>(&claims)
        .ok()
        .map(|claims| claims.aud)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::MasterKey;
    use proptest::prelude::*;

    fn claims() -> Claims {
        Claims {
            sub: "T1".parse().unwrap(),
            aud: "node-1".parse().unwrap(),
            inc: Incarnation::from_bits(42),
            epoch: Epoch::new(9).unwrap(),
            iat: 1_000,
            exp: 1_030,
            jti: "00000000000000aa".to_owned(),
            hop: 0,
            from: None,
            scope: Scope::Connect,
        }
    }

    fn check(text: &str, now_s: u64) -> Result<(Claims, Age), TicketError> {
        let key = Key::from_bytes([1; 32]);
        verify(text, now_s, |kid| (kid == "k1").then_some(&key))
    }

    fn signed(claims: &Claims) -> String {
        sign(claims, "k1", &Key::from_bytes([1; 32]))
    }

    /// A ticket with any header and payload, signed properly.
    fn forged(header: &str, payload: &str) -> String {
        let text = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(payload)
        );
        let signature = Key::from_bytes([1; 32]).sign(&[text.as_bytes()]);
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_ticket_comes_back_as_it_went() {
        assert_eq!(check(&signed(&claims()), 1_010), Ok((claims(), Age::Fresh)));
        assert_eq!(peek_node(&signed(&claims())), Some("node-1".parse().unwrap()));
    }

    /// The vector of docs/protocol.md: other implementations check theirs against it.
    #[test]
    fn the_published_vector_holds() {
        let master = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let master = MasterKey::from_hex(master).unwrap();
        let key = master.ticket_key("1", &"node-1".parse().unwrap());
        // As a welcome carries it.
        let shown = serde_json::to_string(&key).unwrap();
        assert_eq!(shown, "\"ceq1qLNp0sBJNREuKY2hiBG3-MlYmFpvdONV_sBy-uQ\"");
        let claims = Claims {
            inc: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            epoch: Epoch::new(7).unwrap(),
            iat: 1_700_000_000,
            exp: 1_700_000_030,
            ..claims()
        };
        let text = concat!(
            "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ",
            ".eyJzdWIiOiJUMSIsImF1ZCI6Im5vZGUtMSIsImluYyI6IjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVmIiwi",
            "ZXBvY2giOjcsImlhdCI6MTcwMDAwMDAwMCwiZXhwIjoxNzAwMDAwMDMwLCJqdGkiOiIwMDAwMDAwMDAwMDAwMGFhIiwi",
            "aG9wIjowfQ",
            ".e_eWYOXcFn-S3VXDMpxTAwl4qA8bl1FiOCHkVqrTj0w",
        );
        assert_eq!(sign(&claims, "1", &key), text);
        let verified = verify(text, 1_700_000_035, |kid| (kid == "1").then_some(&key));
        assert_eq!(verified, Ok((claims, Age::Fresh)));
    }

    #[test]
    fn expiry_has_a_leeway_and_then_shows() {
        let text = signed(&claims());
        assert_eq!(check(&text, 1_035).map(|(_, age)| age), Ok(Age::Fresh));
        assert_eq!(check(&text, 1_036).map(|(_, age)| age), Ok(Age::Expired));
    }

    #[test]
    fn a_life_beyond_the_bound_or_a_birth_in_the_future_is_refused() {
        let long = Claims {
            exp: 1_061,
            ..claims()
        };
        assert_eq!(check(&signed(&long), 1_000), Err(TicketError::Times));
        assert_eq!(check(&signed(&claims()), 994), Err(TicketError::Times));
        let backwards = Claims { exp: 999, ..claims() };
        assert_eq!(check(&signed(&backwards), 1_000), Err(TicketError::Times));
    }

    #[test]
    fn other_algorithms_keys_and_critical_headers_are_refused() {
        let payload = serde_json::to_string(&claims()).unwrap();
        for (header, error) in [
            (r#"{"alg":"none","kid":"k1"}"#, TicketError::Header),
            (r#"{"alg":"RS256","kid":"k1"}"#, TicketError::Header),
            (r#"{"alg":"HS256","kid":"k1","crit":["x"]}"#, TicketError::Header),
            (r#"{"alg":"HS256","kid":"../../x"}"#, TicketError::UnknownKey),
            (r#"{"alg":"HS256"}"#, TicketError::Malformed),
            (
                r#"{"alg":"HS256","alg":"none","kid":"k1"}"#,
                TicketError::Malformed,
            ),
        ] {
            assert_eq!(check(&forged(header, &payload), 1_000), Err(error), "{header}");
        }
        assert_eq!(
            check(&sign(&claims(), "k1", &Key::from_bytes([2; 32])), 1_000),
            Err(TicketError::Signature)
        );
    }

    #[test]
    fn twice_named_claims_are_refused() {
        let payload = serde_json::to_string(&claims()).unwrap();
        let doubled = payload.replacen('{', r#"{"sub":"T2","#, 1);
        assert_eq!(
            check(&forged(r#"{"alg":"HS256","kid":"k1"}"#, &doubled), 1_000),
            Err(TicketError::Malformed)
        );
    }

    #[test]
    fn padding_and_size_are_refused() {
        let text = signed(&claims());
        assert_eq!(check(&format!("{text}="), 1_000), Err(TicketError::Malformed));
        assert_eq!(check(&"x".repeat(1 << 20), 1_000), Err(TicketError::Malformed));
    }

    proptest! {
        #[test]
        fn any_changed_byte_spoils_a_ticket(at in 0_usize..300, flip in 1_u8..=255) {
            let text = signed(&claims());
            let mut bytes = text.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            if let Ok(changed) = String::from_utf8(bytes) {
                prop_assert!(check(&changed, 1_000).is_err());
            }
        }

        #[test]
        fn any_text_is_answered_without_a_panic(text in ".{0,200}") {
            let _ = check(&text, 1_000);
            let _ = peek_node(&text);
        }
    }
}
