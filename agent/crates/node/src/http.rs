//! Pages over HTTP/1.1 that a node makes at once: health of Services, metrics.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long a client may take for all of its connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients at once; more wait.
const CLIENTS_MAX: usize = 64;
/// After a failure, as too many open files are.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) type Page = Response<Full<Bytes>>;

/// Answers each request, given its path, and closes the connection; never ends.
pub(crate) async fn serve(
    listener: TcpListener,
    answer: impl Fn(&str) -> Page + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        if clients.len() >= CLIENTS_MAX {
            drop(clients.join_next().await);
        }
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let answer = Arc::clone(&answer);
        let answering = service_fn(move |request: Request<Incoming>| {
            let page = answer(request.uri().path());
            async move { Ok::<_, Infallible>(page) }
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).keep_alive(false);
        let connection = server.serve_connection(TokioIo::new(stream), answering);
        // A client that goes away is no error.
        clients.spawn(async move { drop(timeout(PATIENCE, connection).await) });
    }
}
