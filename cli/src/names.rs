//! The names in URLs. The HTTP client tries the IPv4 addresses of a name one after the other, and so
//! the IPv6 ones: a first one that swallows all would use up the time. Here the one that answers is put first.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{ClientBuilder, Url};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long connecting may take, shared by the addresses of a name that is not in [`Names`].
const CONNECT: Duration = Duration::from_secs(5);

/// The port that each known name is dialled at; a resolver is told the name only.
#[derive(Debug, Default)]
struct Names {
    ports: HashMap<String, u16>,
}

/// A client to be built, for servers at `urls`.
pub(crate) fn client_for<'u>(urls: impl IntoIterator<Item = &'u str>) -> ClientBuilder {
    let ports = urls.into_iter().filter_map(|url| {
        let url = Url::parse(url).ok()?;
        Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
    });
    let names = Names {
        ports: ports.collect(),
    };
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .dns_resolver(Arc::new(names))
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let port = self.ports.get(name.as_str()).copied();
        Box::pin(async move {
            let host = name.as_str();
            let addresses: Addrs = match port {
                Some(port) => Box::new(usher_dial::answering_first((host, port)).await?.into_iter()),
                // Somebody sent us there. The port is in the URL, which is not shown here.
                None => {
                    let found: Vec<_> = tokio::net::lookup_host((host, 0)).await?.collect();
                    Box::new(found.into_iter())
                }
            };
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_resolved_to_what_answers_at_its_port() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let names = Names {
            ports: HashMap::from([("localhost".to_owned(), address.port())]),
        };
        let mut found = names.resolve("localhost".parse().unwrap()).await.unwrap();
        assert_eq!(found.next(), Some(address));
        let unknown = Names::default().resolve("localhost".parse().unwrap()).await;
        assert!(unknown.unwrap().all(|address| address.port() == 0));
    }
}
