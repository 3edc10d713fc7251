use super::*;
use http::StatusCode;
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);
const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const ASK_HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

/// `/` is answered, `/healthz` too, `/slow` never, `/refuse` without reading, `/read` after reading, `/up` with a 101.
async fn serve_with(limits: Limits) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = service_fn(|request: Request<Inflow>| async move {
        let path = request.uri().path().to_owned();
        let mut answer = Response::new(Full::new(Bytes::from_static(b"answer")));
        match path.as_str() {
            "/slow" => std::future::pending::<()>().await,
            "/large" => *answer.body_mut() = Full::new(Bytes::from(vec![b'x'; 16 << 20])),
            "/refuse" => *answer.status_mut() = StatusCode::FORBIDDEN,
            "/read" => drop(request.into_body().collect().await),
            "/up" => {
                *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                *answer.body_mut() = Full::default();
                let headers = answer.headers_mut();
                headers.insert("connection", "Upgrade".parse().unwrap());
                headers.insert("upgrade", "x".parse().unwrap());
            }
            _ => {}
        }
        Ok::<_, Infallible>(answer)
    });
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, limits, stop.clone(), service));
    Served {
        address,
        stop,
        serving,
    }
}

fn limits(connections: usize, waiting: usize) -> Limits {
    Limits {
        connections,
        waiting,
        place_timeout: Duration::from_millis(300),
        head_timeout: DEADLINE,
        ..Limits::of("test")
    }
}

impl Served {
    /// A connection from 127.0.0.`last`, on which `bytes` were sent.
    async fn from(&self, last: u8, bytes: &[u8]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    async fn ends(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.serving).await.unwrap().unwrap();
    }
}

/// The head of the next answer.
async fn head(stream: &mut TcpStream) -> String {
    let reading = async {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => text.push(byte),
                Err(_) => break,
            }
        }
        String::from_utf8(text).unwrap()
    };
    timeout(DEADLINE, reading).await.expect("there is no answer")
}

async fn answered(stream: &mut TcpStream, status: &str) {
    let head = head(stream).await;
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}");
}

/// Whether the connection is closed by the other side.
async fn is_cut(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_keep_its_place() {
    let served = serve_with(Limits {
        write_timeout: Duration::from_millis(500),
        place_timeout: DEADLINE,
        ..limits(1, 1)
    })
    .await;
    let deaf = served.from(1, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut next = served.from(1, ASK).await;
    answered(&mut next, "200").await;
    drop((deaf, next));
    served.ends().await;
}

#[tokio::test]
async fn idle_connections_make_room_the_longest_idle_first() {
    let served = serve_with(limits(3, 1)).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut stream = served.from(1, ASK).await;
        answered(&mut stream, "200").await;
        idle.push(stream);
    }
    for _ in 0..20 {
        answered(&mut served.from(1, ASK).await, "200").await;
    }
    assert!(is_cut(&mut idle[0]).await);
    served.ends().await;
}

#[tokio::test]
async fn one_address_cannot_shut_out_the_others() {
    let served = serve_with(limits(4, 1)).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(served.from(2, b"").await);
    }
    for other in [1, 3] {
        answered(&mut served.from(other, ASK).await, "200").await;
    }
    assert!(is_cut(&mut silent[0]).await);
    served.ends().await;
}

#[tokio::test]
async fn the_health_is_told_when_there_is_no_room_and_the_rest_waits_for_it() {
    let served = serve_with(limits(2, 4)).await;
    let slow: &[u8] = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";
    let (one, two) = (served.from(1, slow).await, served.from(1, slow).await);
    let mut health = served.from(1, ASK_HEALTH).await;
    answered(&mut health, "200").await;
    let mut refused = served.from(1, ASK).await;
    let refusal = head(&mut refused).await;
    assert!(
        refusal.contains(" 503 ") && refusal.contains("retry-after: 1"),
        "{refusal}"
    );
    let mut waits = served.from(1, ASK).await;
    drop(one);
    answered(&mut waits, "200").await;
    drop((two, health, refused, waits));
    served.ends().await;
}

#[tokio::test]
async fn a_request_names_one_host_but_a_health_check_need_not() {
    let served = serve_with(limits(16, 16)).await;
    for (ask, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        ("GET /healthz HTTP/1.1\r\n\r\n", "200"),
    ] {
        answered(&mut served.from(1, ask.as_bytes()).await, status).await;
    }
    let mut old = served.from(1, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(head(&mut old).await.starts_with("HTTP/1.0 200 "));
    served.ends().await;
}

#[tokio::test]
async fn a_refusal_is_read_by_a_client_that_is_still_sending() {
    let served = serve_with(limits(4, 1)).await;
    let mut stream = served
        .from(
            1,
            b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n",
        )
        .await;
    for _ in 0..100 {
        stream.write_all(&[b'x'; 10_000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    answered(&mut stream, "403").await;
    let mut body = [0; 6];
    stream.read_exact(&mut body).await.unwrap();
    // All was read, so the connection can be used again.
    stream.write_all(ASK).await.unwrap();
    answered(&mut stream, "200").await;
    served.ends().await;
}

#[tokio::test]
async fn what_nobody_reads_is_bounded_in_bytes_and_in_time() {
    let served = serve_with(Limits {
        linger: Linger {
            bytes: 100_000,
            time: DEADLINE,
            pause: Duration::from_millis(200),
        },
        ..limits(4, 1)
    })
    .await;
    let refuse = b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n";
    let mut silent = served.from(1, refuse).await;
    answered(&mut silent, "403").await;
    assert!(is_cut(&mut silent).await);
    let mut endless = served.from(1, refuse).await;
    let sending = async { while endless.write_all(&[b'x'; 10_000]).await.is_ok() {} };
    timeout(DEADLINE, sending).await.expect("it is read for ever");
    served.ends().await;
}

#[tokio::test]
async fn whoever_waits_for_100_continue_is_not_told_to_go_on_by_a_refusal() {
    let served = serve_with(limits(4, 1)).await;
    let expect = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
    };
    answered(&mut served.from(1, expect("/refuse").as_bytes()).await, "403").await;
    let mut read = served.from(1, expect("/read").as_bytes()).await;
    answered(&mut read, "100").await;
    read.write_all(b"hello").await.unwrap();
    answered(&mut read, "200").await;
    served.ends().await;
}

#[tokio::test]
async fn a_101_names_no_other_option_than_its_own() {
    let served = serve_with(limits(4, 1)).await;
    for connection in ["Upgrade", "close, Upgrade", "Upgrade, close"] {
        let ask = format!("GET /up HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\nupgrade: x\r\n\r\n");
        let head = head(&mut served.from(1, ask.as_bytes()).await).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("\r\nconnection: Upgrade\r\n"), "{head}");
    }
    served.ends().await;
}
