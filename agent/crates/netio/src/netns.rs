//! Network namespaces, named the way `ip netns` names them, and how to run things inside.
//!
//! A namespace belongs to a thread. [`NetNs::enter`] therefore uses a fresh thread that ends with the
//! closure, so that no pooled thread is ever left in the wrong namespace. `/sys` is not mounted
//! again: nothing here reads it.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::sys::Control;

/// Where named namespaces are, as for `ip netns`.
const DIRECTORY: &str = "/run/netns";

/// A handle on a network namespace. The namespace lives at least as long as the handle.
#[derive(Clone, Debug)]
pub struct NetNs {
    file: Arc<File>,
    path: PathBuf,
}

/// Makes the namespace `name`, with its loopback interface up, and mounts it under `/run/netns`.
///
/// # Errors
/// `AlreadyExists` if there is one of that name, `InvalidInput` for a name that is not one plain
/// path component, `PermissionDenied` without `CAP_SYS_ADMIN`. Nothing is left behind.
pub fn create(name: &str) -> io::Result<NetNs> {
    let path = path_of(name)?;
    prepare_directory()?;
    File::create_new(&path)?;
    let result = in_fresh_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Control::open()?.set_up("lo")?;
        let own = "/proc/thread-self/ns/net";
        mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    });
    match result.and_then(|()| NetNs::open_path(&path)) {
        Ok(namespace) => Ok(namespace),
        Err(error) => {
            let _ = umount2(&path, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(&path);
            Err(error)
        }
    }
}

/// Takes the name of a namespace away; it ends with its last process, socket or handle.
///
/// Devices in it that exist only there (veth ends with their peers) go with it. A name that does
/// not exist is no error.
///
/// # Errors
/// `InvalidInput` for a bad name, else the kernel's.
pub fn delete(name: &str) -> io::Result<()> {
    let path = path_of(name)?;
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there but nothing is mounted on it.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names of the namespaces under `/run/netns`, sorted.
///
/// # Errors
/// The file system's; a missing directory is an empty list.
pub fn list() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// The file under `/run/netns` that stands for `name`.
///
/// # Errors
/// `InvalidInput` for a name that is not one plain path component.
pub fn path_of(name: &str) -> io::Result<PathBuf> {
    if name.is_empty() || name.len() > 255 || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a name for a namespace"));
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// Runs `work` in the namespace `name`: [`NetNs::open`] and [`NetNs::enter`].
///
/// # Errors
/// See there.
pub fn enter<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    NetNs::open(name)?.enter(work)
}

impl NetNs {
    /// Opens the namespace `name` under `/run/netns`.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn open(name: &str) -> io::Result<Self> {
        Self::open_path(&path_of(name)?)
    }

    /// Opens a namespace by path, such as `/proc/PID/ns/net` or the one a CNI runtime hands over.
    ///
    /// # Errors
    /// The file system's. Whether it is a network namespace shows when it is entered.
    pub fn open_path(path: &Path) -> io::Result<Self> {
        Ok(Self { file: Arc::new(File::open(path)?), path: path.to_owned() })
    }

    /// Makes a namespace without a name, with nothing in it: it ends with its last handle.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_SYS_ADMIN`, else the kernel's.
    pub fn unnamed() -> io::Result<Self> {
        in_fresh_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// The file system's, if `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::open_path(Path::new("/proc/thread-self/ns/net"))
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` inside on a fresh thread and waits for it.
    ///
    /// What it opens stays in the namespace: sockets and TUN queues can be handed out. Processes
    /// it starts are born in it.
    ///
    /// # Errors
    /// `InvalidInput` if this is no network namespace, `PermissionDenied` without
    /// `CAP_SYS_ADMIN`.
    ///
    /// # Panics
    /// A panic of `work` goes on in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_fresh_thread(|| {
            setns(self.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Starting processes in a namespace; for [`std::process::Command`] and [`tokio::process::Command`].
pub trait InNetNs {
    /// Makes the process start inside `namespace`. Spawning fails if it cannot be entered.
    fn in_netns(&mut self, namespace: &NetNs) -> &mut Self;

    /// Makes the process, and what it starts, see the file `source` at `target`; nobody else does.
    /// Spawning fails if one of them is not there.
    ///
    /// # Errors
    /// `InvalidInput` for a path with a zero byte.
    fn with_file(&mut self, source: &Path, target: &Path) -> io::Result<&mut Self>;
}

impl InNetNs for Command {
    fn in_netns(&mut self, namespace: &NetNs) -> &mut Self {
        let namespace = namespace.clone();
        let join = move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe { self.pre_exec(join) }
    }

    fn with_file(&mut self, source: &Path, target: &Path) -> io::Result<&mut Self> {
        let [source, target] =
            [source, target].map(|path| CString::new(path.as_os_str().as_bytes()));
        let (source, target) = (source?, target?);
        let cover = move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&CStr>;
            mount(none, c"/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
            Ok(mount(Some(&*source), &*target, none, MsFlags::MS_BIND, none)?)
        };
        // SAFETY: between fork and exec the closure makes system calls and allocates nothing.
        Ok(unsafe { self.pre_exec(cover) })
    }
}

impl InNetNs for tokio::process::Command {
    fn in_netns(&mut self, namespace: &NetNs) -> &mut Self {
        self.as_std_mut().in_netns(namespace);
        self
    }

    fn with_file(&mut self, source: &Path, target: &Path) -> io::Result<&mut Self> {
        self.as_std_mut().with_file(source, target)?;
        Ok(self)
    }
}

fn in_fresh_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let builder = thread::Builder::new().name("netns".to_owned());
    thread::scope(|scope| match builder.spawn_scoped(scope, work)?.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes `/run/netns` a shared mount, so that deleting a name takes effect in every mount
/// namespace that has it; otherwise containers would keep the namespace alive.
fn prepare_directory() -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let none = None::<&str>;
    let share = || mount(none, DIRECTORY, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        // Not a mount point yet.
        Err(nix::Error::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(DIRECTORY), DIRECTORY, none, flags, none)?;
            Ok(share()?)
        }
        result => Ok(result?),
    }
}
