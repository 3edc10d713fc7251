//! One spelling for one path: `%7E` is `~` (RFC 3986 section 6.2.2.2), and some clients and proxies
//! write it so.

use http::Uri;
use http::uri::PathAndQuery;
use std::borrow::Cow;

/// Spells out what need not be encoded in the path. What has to be encoded stays so. A path with a
/// broken escape stays as it is, for whoever reads it to refuse.
pub fn normalise(uri: &mut Uri) {
    let Cow::Owned(path) = spelled_out(uri.path()) else {
        return;
    };
    let whole = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = std::mem::take(uri).into_parts();
    // Only letters, digits and `-._~` were put in: it is a path as it was before.
    parts.path_and_query = PathAndQuery::try_from(whole).ok();
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

fn spelled_out(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        let digits = escape
            .get(1..3)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return Cow::Borrowed(path);
        };
        plain.push_str(before);
        let letter = char::from(byte);
        if letter.is_ascii_alphanumeric() || "-._~".contains(letter) {
            plain.push(letter);
        } else {
            plain.push_str(&escape[..3]);
        }
        rest = &escape[3..];
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(text: &str) -> String {
        let mut uri: Uri = text.parse().unwrap();
        normalise(&mut uri);
        uri.to_string()
    }

    #[test]
    fn what_need_not_be_encoded_is_spelled_out() {
        for (given, expected) in [
            ("/teams/a%7Eb", "/teams/a~b"),
            ("/teams/a%7eb?x=%7E", "/teams/a~b?x=%7E"),
            ("/%74eams/%54%31", "/teams/T1"),
            ("/teams/a%2Fb%00%3A", "/teams/a%2Fb%00%3A"),
            ("/teams/%2", "/teams/%2"),
            ("/teams/%%37E", "/teams/%%37E"),
            ("/teams/%41%zz", "/teams/%41%zz"),
            ("/teams/%+7", "/teams/%+7"),
            ("http://h:1/a%2Db", "http://h:1/a-b"),
            ("/plain", "/plain"),
        ] {
            assert_eq!(normalised(given), expected, "{given}");
        }
    }
}
