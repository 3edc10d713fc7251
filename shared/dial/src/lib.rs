//! How Usher's processes dial (RFC 8305, "Happy Eyeballs").
//!
//! A name may have several addresses, and one of them may swallow all that is sent to it: a machine
//! that died, a network without a way for IPv6. Tried one after the other, the first would be waited
//! for until the caller's patience ends, and the next never be tried. Here the next begins a quarter of
//! a second after the one before, or at once when that failed, and the first that answers is taken.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpStream, ToSocketAddrs, lookup_host};
use tokio::time::{Instant, sleep_until};

/// How long an attempt has before the next begins beside it: RFC 8305 section 8 recommends it.
pub const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried. A name has a handful; what a resolver of ill will adds is left out.
pub const MAX_ADDRESSES: usize = 16;

/// Connects to the first address of `host` (`host:port`, or a pair of both) that answers. The caller bounds the time.
///
/// # Errors
/// When no address could be connected to: [`io::ErrorKind::ConnectionRefused`] only if each of them
/// refused, since one that is silent may still be alive.
pub async fn dial(host: impl ToSocketAddrs) -> io::Result<TcpStream> {
    dial_within(host, STAGGER).await
}

/// The same for a caller who has less time: each attempt has `stagger` before the next begins beside it.
///
/// # Errors
/// As [`dial`].
pub async fn dial_within(host: impl ToSocketAddrs, stagger: Duration) -> io::Result<TcpStream> {
    let addresses = in_order(lookup_host(host).await?);
    let (_, stream) = first(addresses, stagger, TcpStream::connect).await?;
    Ok(stream)
}

/// The addresses of `host`, the one that answers first in front: for those who dial themselves, one
/// address after the other. Those of a name that has one only are not tried.
///
/// # Errors
/// When the name has no address, or none answers.
pub async fn answering_first(host: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = in_order(lookup_host(host).await?);
    if addresses.len() > 1 {
        let (best, _) = first(addresses.clone(), STAGGER, TcpStream::connect).await?;
        addresses.retain(|address| *address != best);
        addresses.insert(0, best);
    }
    Ok(addresses)
}

/// The order to try addresses in: the families take turns (RFC 8305 section 4), beginning with the
/// one that the system put first, and each keeps the system's order (RFC 6724).
fn in_order(found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !all.contains(&address) {
            all.push(address);
        }
        if all.len() == MAX_ADDRESSES {
            break;
        }
    }
    let leader = all.first().is_some_and(SocketAddr::is_ipv6);
    let (leading, other): (Vec<_>, Vec<_>) = all.into_iter().partition(|address| address.is_ipv6() == leader);
    let mut ordered = Vec::with_capacity(leading.len() + other.len());
    let (mut leading, mut other) = (leading.into_iter(), other.into_iter());
    loop {
        let (one, two) = (leading.next(), other.next());
        if one.is_none() && two.is_none() {
            return ordered;
        }
        ordered.extend(one);
        ordered.extend(two);
    }
}

/// The first attempt that succeeds; the others are given up.
async fn first<T, F>(
    addresses: Vec<SocketAddr>,
    stagger: Duration,
    attempt: impl Fn(SocketAddr) -> F,
) -> io::Result<(SocketAddr, T)>
where
    F: Future<Output = io::Result<T>>,
{
    let attempt = |address| {
        let attempt = attempt(address);
        async move { (address, attempt.await) }
    };
    let mut waiting = addresses.into_iter();
    let mut under_way = FuturesUnordered::new();
    let mut failed: Option<io::Error> = None;
    let mut next_at = Instant::now();
    loop {
        let more = waiting.len() > 0;
        if under_way.is_empty() && !more {
            return Err(failed.unwrap_or_else(|| {
                io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address")
            }));
        }
        tokio::select! {
            Some((address, outcome)) = under_way.next(), if !under_way.is_empty() => match outcome {
                Ok(made) => return Ok((address, made)),
                Err(error) => {
                    failed = Some(worse(failed, error));
                    next_at = Instant::now();
                }
            },
            () = sleep_until(next_at), if more => {
                under_way.extend(waiting.next().map(attempt));
                next_at = Instant::now() + stagger;
            }
        }
    }
}

/// What is told of two failures: whatever is not a refusal, since only refusals all over say that
/// nobody is there.
fn worse(known: Option<io::Error>, new: io::Error) -> io::Error {
    match known {
        Some(known) if known.kind() != io::ErrorKind::ConnectionRefused => known,
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// What an address does in these tests, by its last number: 1 swallows, 2 refuses, 3 answers
    /// at once, 4 answers in a while.
    async fn behave(address: SocketAddr) -> io::Result<SocketAddr> {
        match address.ip().to_string().chars().last() {
            Some('1') => std::future::pending().await,
            Some('2') => Err(io::ErrorKind::ConnectionRefused.into()),
            Some('3') => Ok(address),
            Some('4') => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(address)
            }
            _ => Err(io::ErrorKind::NetworkUnreachable.into()),
        }
    }

    /// Who won; `None` when nobody did for a long time.
    async fn race(texts: &[&str], stagger: Duration) -> Option<io::Result<String>> {
        let racing = first(addresses(texts), stagger, behave);
        let won = tokio::time::timeout(Duration::from_secs(5), racing).await.ok()?;
        Some(won.map(|(address, _)| address.to_string()))
    }

    const SHORT: Duration = Duration::from_millis(1);
    const ENDLESS: Duration = Duration::from_secs(86_400);

    #[tokio::test]
    async fn addresses_that_swallow_are_got_past() {
        for texts in [
            &["10.0.0.1:1", "10.0.0.3:1"][..],
            &["10.0.0.1:1", "[fd00::1]:1", "10.0.1.1:1", "10.0.0.3:1"],
        ] {
            assert_eq!(race(texts, SHORT).await.unwrap().unwrap(), "10.0.0.3:1");
        }
        assert!(race(&["10.0.0.1:1", "10.0.0.3:1"], ENDLESS).await.is_none());
    }

    #[tokio::test]
    async fn after_a_refusal_the_next_begins_at_once() {
        let won = race(&["10.0.0.2:1", "10.0.1.2:1", "10.0.0.3:1"], ENDLESS).await;
        assert_eq!(won.unwrap().unwrap(), "10.0.0.3:1");
    }

    #[tokio::test]
    async fn a_slow_address_goes_on_beside_the_next() {
        let won = race(&["10.0.0.4:1", "10.0.0.1:1"], SHORT).await;
        assert_eq!(won.unwrap().unwrap(), "10.0.0.4:1");
    }

    #[tokio::test]
    async fn only_refusals_all_over_are_a_refusal() {
        let kind = async |texts: &[&str]| race(texts, SHORT).await.unwrap().unwrap_err().kind();
        let refused = kind(&["10.0.0.2:1", "10.0.1.2:1"]).await;
        assert_eq!(refused, io::ErrorKind::ConnectionRefused);
        for mixed in [["10.0.0.2:1", "10.0.0.5:1"], ["10.0.0.5:1", "10.0.0.2:1"]] {
            assert_eq!(kind(&mixed).await, io::ErrorKind::NetworkUnreachable);
        }
        assert_eq!(kind(&[]).await, io::ErrorKind::AddrNotAvailable);
        assert!(race(&["10.0.0.1:1", "10.0.0.2:1"], SHORT).await.is_none());
    }

    #[test]
    fn families_take_turns_and_no_list_is_endless() {
        let mixed = addresses(&[
            "[fd00::1]:1",
            "[fd00::2]:1",
            "[fd00::2]:1",
            "10.0.0.1:1",
            "[fd00::3]:1",
        ]);
        let ordered = in_order(mixed).into_iter().map(|address| address.to_string());
        let expected = ["[fd00::1]:1", "10.0.0.1:1", "[fd00::2]:1", "[fd00::3]:1"];
        assert_eq!(ordered.collect::<Vec<_>>(), expected);
        let many = (0..=255).map(|last| SocketAddr::from(([10, 0, 0, last], 1)));
        assert_eq!(in_order(many).len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn a_listener_is_reached_and_a_closed_port_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(dial(address).await.unwrap().peer_addr().unwrap(), address);
        let text = format!("localhost:{}", address.port());
        let first = answering_first(text).await.unwrap();
        assert_eq!(first.first(), Some(&address));
        drop(listener);
        assert_eq!(
            dial(address).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
}
