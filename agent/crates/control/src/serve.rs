//! Services on unix sockets that only root can open.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;

/// Why a socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody answers there.
    #[error("{} is served by another process: stop that one first, or choose another directory", .0.display())]
    InUse(PathBuf),
    /// There is something, and it is no socket.
    #[error("{} exists and is no socket: move it away", .0.display())]
    NotASocket(PathBuf),
    /// The file system said no.
    #[error("{} cannot be made a socket ({source}): may this user write there?", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server broke off.
    #[error("serving {} ended ({source})", .path.display())]
    Server {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

async fn bind_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Io { path: path.to_owned(), source };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        make_directory(directory).map_err(failed)?;
    }
    ensure_free(path).await?;
    // Bound under another name first: at `path` it is never open to others, not for a moment.
    let mut unready = path.as_os_str().to_owned();
    unready.push(".new");
    let unready = PathBuf::from(unready);
    match fs::remove_file(&unready) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        Err(_) | Ok(()) => {}
    }
    let listener = UnixListener::bind(&unready).map_err(failed)?;
    fs::set_permissions(&unready, Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&unready, path).map_err(failed)?;
    Ok(listener)
}

/// How often a socket's file is looked at.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Pause after the kernel refused a connection, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket of mode 0600, which is made again when somebody removes its file.
#[derive(Debug)]
pub struct KeptSocket {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of the file.
    file: Option<(u64, u64)>,
    ticks: Interval,
}

impl KeptSocket {
    /// Listens on `path`. A missing directory is made with mode 0700 (those above it 0755); a socket
    /// that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`ServeError::InUse`], [`ServeError::NotASocket`] or [`ServeError::Io`].
    pub async fn bind(path: &Path) -> Result<Self, ServeError> {
        let listener = bind_unix(path).await?;
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { file: file_id(path), path: path.to_owned(), listener, ticks })
    }

    /// The next connection. May be dropped at any time.
    pub async fn accept(&mut self) -> UnixStream {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => return stream,
                    Err(error) => {
                        tracing::warn!(%error, socket = %self.path.display(), "no connection taken");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                _ = self.ticks.tick() => self.put_back().await,
            }
        }
    }

    /// A file that another process made in the meantime is left to it.
    async fn put_back(&mut self) {
        if file_id(&self.path).is_some() {
            return;
        }
        match bind_unix(&self.path).await {
            Ok(listener) => {
                tracing::info!(socket = %self.path.display(), "socket put back");
                self.listener = listener;
                self.file = file_id(&self.path);
            }
            Err(error) => tracing::debug!(%error, "socket not put back"),
        }
    }
}

impl Drop for KeptSocket {
    /// A leftover would be replaced by the next start anyway.
    fn drop(&mut self) {
        if self.file.is_some() && file_id(&self.path) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Serves `router` on `socket` until `shutdown` is done, then removes the socket.
///
/// # Errors
/// [`ServeError::Server`].
pub async fn serve_unix(
    mut socket: KeptSocket,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let path = socket.path.clone();
    let (connections, incoming) = mpsc::channel(1);
    let incoming = ReceiverStream::new(incoming);
    let accept = async move {
        while connections.send(Ok::<_, io::Error>(socket.accept().await)).await.is_ok() {}
        std::future::pending().await
    };
    let served = tokio::select! {
        served = router.serve_with_incoming_shutdown(incoming, shutdown) => served,
        never = accept => never,
    };
    served.map_err(|source| ServeError::Server { path, source })
}

/// Makes sure that [`KeptSocket::bind`] would find nobody at `path`, and changes nothing: for a process
/// that should not even make its files if another one is there.
///
/// # Errors
/// As [`KeptSocket::bind`].
pub async fn ensure_free(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ServeError::InUse(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(above) = directory.parent().filter(|d| !d.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o755).create(above)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        Err(_) | Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn socket_is_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/weft/x.sock");
        let _listener = bind_unix(&path).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
    }

    #[tokio::test]
    async fn removed_socket_is_put_back_and_taken_away_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/x.sock");
        let mut socket = KeptSocket::bind(&path).await.unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let connected = async {
            while UnixStream::connect(&path).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let both = async { tokio::join!(socket.accept(), connected) };
        tokio::time::timeout(Duration::from_secs(2), both).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let first = bind_unix(&path).await.unwrap();
        assert!(matches!(bind_unix(&path).await, Err(ServeError::InUse(_))));
        drop(first);
        bind_unix(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_of_somebody_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(bind_unix(&path).await, Err(ServeError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
