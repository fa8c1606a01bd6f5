//! The listener: loopback only, and no connection keeps more than it needs, however little its other end takes.

use crate::api::{Window, router};
use crate::desk::Desk;
use crate::door::Door;
use crate::hub::Hub;
use crate::token::Token;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mnemosyne_store::Store;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

/// Bytes that wait in the process for one connection, and as many in the kernel.
const BUFFER: usize = 64 * 1024;
/// Connections at a time; more wait in the kernel.
const CONNECTIONS: usize = 512;
/// A connection of which nothing is taken for so long is closed. Longer than a stream's patience, which says so first.
const WRITE: Duration = Duration::from_secs(40);
/// For the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// What is under way when the window closes gets so long.
const GRACE: Duration = Duration::from_secs(2);

/// An open window. Dropped, it closes.
pub struct Server {
    hub: Arc<Hub>,
    address: SocketAddr,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Server").field("address", &self.address).finish()
    }
}

/// Takes a port of loopback; 0 is any free one.
///
/// # Errors
/// The port is taken, or may not be used.
pub fn listen(port: u16) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    // Accepted connections have the buffer of their listener.
    socket2::SockRef::from(&listener).set_send_buffer_size(BUFFER)?;
    Ok(listener)
}

impl Server {
    /// Opens the window on a listener of [`listen`], inside a tokio runtime.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn open(listener: TcpListener, store: Arc<dyn Store>, token: Token) -> std::io::Result<(Self, Desk)> {
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (hub, (counter, desk)) = (Hub::new(store), Desk::open());
        tokio::spawn(Arc::clone(&hub).follow());
        let router = router(Window::new(Arc::clone(&hub), counter), Door { token, port: address.port() });
        tokio::spawn(accept(listener, router, Arc::clone(&hub)));
        Ok((Self { hub, address }, desk))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes it; what is under way gets 2 s.
    pub fn close(&self) {
        self.hub.close();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

async fn accept(listener: tokio::net::TcpListener, router: Router, hub: Arc<Hub>) {
    let (places, mut connections) = (Arc::new(Semaphore::new(CONNECTIONS)), JoinSet::new());
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            () = hub.closed() => break,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        match stream {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn(async move {
                    serve(stream, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, say: what is open goes on, and the next one may be taken again.
                tracing::warn!(target: "mnemosyne::window", "a connection was not taken: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

async fn serve(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    // A client that goes away is no event.
    let _ = connection.await;
}
