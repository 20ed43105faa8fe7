//! Waiting for descriptors, a wake-up from another thread, or a time: one poller for each worker.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The token of the waker's own descriptor.
const WAKER_TOKEN: u64 = u64::MAX;
/// Events taken by one wait. A worker has a handful of descriptors.
const EVENTS_MAX: usize = 64;

/// A level-triggered epoll instance with a [`Waker`].
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    waker: Waker,
}

/// Wakes a [`Poller`] from any thread. Cheap to clone; wake-ups before the next wait are merged.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

/// What a descriptor is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Something can be read.
    Read,
    /// Something can be read, or written.
    ReadWrite,
    /// Errors only: the descriptor stays known but does not wake the poller.
    Paused,
}

/// One ready descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The token it was added with.
    pub token: u64,
    /// Can be read, or has an error that a read will tell.
    pub readable: bool,
    /// Can be written.
    pub writable: bool,
}

/// What a wait found; reused from wait to wait.
#[derive(Debug)]
pub struct Events {
    raw: Vec<EpollEvent>,
    count: usize,
    woken: bool,
}

impl Default for Events {
    fn default() -> Self {
        Self { raw: vec![EpollEvent::empty(); EVENTS_MAX], count: 0, woken: false }
    }
}

impl Events {
    /// Whether a [`Waker`] was used since the last wait.
    #[must_use]
    pub fn woken(&self) -> bool {
        self.woken
    }

    /// The ready descriptors, without the waker's.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.raw.iter().take(self.count).filter(|raw| raw.data() != WAKER_TOKEN).map(|raw| {
            let flags = raw.events();
            let failed = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
            Event {
                token: raw.data(),
                readable: flags.intersects(EpollFlags::EPOLLIN | failed),
                writable: flags.contains(EpollFlags::EPOLLOUT),
            }
        })
    }
}

impl Poller {
    /// Makes a poller that watches only its waker.
    ///
    /// # Errors
    /// The kernel's: out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, WAKER_TOKEN))?;
        Ok(Self { epoll, waker: Waker(Arc::new(event)) })
    }

    /// A handle that wakes this poller.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Watches `fd`; `token` (not `u64::MAX`) comes back in its events.
    ///
    /// A descriptor that is closed is forgotten by itself.
    ///
    /// # Errors
    /// The kernel's, `AlreadyExists` if it is watched already.
    pub fn add(&self, fd: &impl AsFd, token: u64, readiness: Readiness) -> io::Result<()> {
        if token == WAKER_TOKEN {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "token is reserved"));
        }
        Ok(self.epoll.add(fd, EpollEvent::new(readiness.flags(), token))?)
    }

    /// Changes what a watched `fd` is waited for.
    ///
    /// # Errors
    /// The kernel's, `NotFound` if it is not watched.
    pub fn modify(&self, fd: &impl AsFd, token: u64, readiness: Readiness) -> io::Result<()> {
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(readiness.flags(), token))?)
    }

    /// Stops watching `fd`.
    ///
    /// # Errors
    /// The kernel's, `NotFound` if it is not watched.
    pub fn remove(&self, fd: &impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits until something is ready, the waker is used or `timeout` is over.
    ///
    /// `None` waits without end; times are rounded up to milliseconds, so that a caller that waits
    /// for a deadline finds it passed. Zero only looks. A signal ends the wait early.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.count = 0;
        events.woken = false;
        events.count = match self.epoll.wait(&mut events.raw, epoll_timeout(timeout)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        if events.raw.iter().take(events.count).any(|raw| raw.data() == WAKER_TOKEN) {
            events.woken = true;
            self.waker.drain();
        }
        Ok(())
    }
}

impl Waker {
    /// Makes the current or the next wait of the poller return at once.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then a wake-up is pending anyway.
        let _ = self.0.write(1);
    }

    fn drain(&self) {
        let _ = self.0.read();
    }
}

impl Readiness {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN,
            Self::ReadWrite => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Self::Paused => EpollFlags::empty(),
        }
    }
}

fn epoll_timeout(timeout: Option<Duration>) -> EpollTimeout {
    let Some(timeout) = timeout else { return EpollTimeout::NONE };
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn waker_ends_a_wait_once() {
        let poller = Poller::new().unwrap();
        let waker = poller.waker();
        let thread = std::thread::spawn(move || waker.wake());
        let mut events = Events::default();
        poller.wait(&mut events, None).unwrap();
        thread.join().unwrap();
        assert!(events.woken());
        assert_eq!(events.iter().count(), 0);
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(!events.woken());
    }

    #[test]
    fn readable_descriptor_comes_with_its_token() {
        let poller = Poller::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        poller.add(&near, 7, Readiness::Read).unwrap();
        far.write_all(b"x").unwrap();
        let mut events = Events::default();
        poller.wait(&mut events, None).unwrap();
        let found: Vec<Event> = events.iter().collect();
        assert_eq!(found, [Event { token: 7, readable: true, writable: false }]);
        poller.modify(&near, 7, Readiness::Paused).unwrap();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.iter().count(), 0);
    }

    #[test]
    fn timeout_is_never_early() {
        let poller = Poller::new().unwrap();
        let started = Instant::now();
        poller.wait(&mut Events::default(), Some(Duration::from_micros(1500))).unwrap();
        assert!(started.elapsed() >= Duration::from_micros(1500));
    }
}
