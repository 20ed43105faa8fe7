//! On which CPUs the calling thread may run.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// The CPUs that a thread had when it was asked.
#[derive(Clone, Copy, Debug)]
pub struct Affinity(CpuSet);

impl Affinity {
    /// Those of the calling thread.
    ///
    /// # Errors
    /// The kernel's; it does not fail for the thread itself on machines of up to 1024 CPUs.
    pub fn current() -> io::Result<Self> {
        Ok(Self(sched_getaffinity(SELF)?))
    }

    /// True if `cpu` is one of them.
    #[must_use]
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.is_set(cpu).unwrap_or(false)
    }

    /// Lets the calling thread run on all of these.
    ///
    /// # Errors
    /// The kernel's: none of them is left to the process.
    pub fn allow_all(&self) -> io::Result<()> {
        Ok(sched_setaffinity(SELF, &self.0)?)
    }

    /// Keeps the calling thread on `cpu`, one of these.
    ///
    /// # Errors
    /// `InvalidInput` if it is none of these or is not left to the process.
    pub fn keep_on(&self, cpu: usize) -> io::Result<()> {
        if !self.contains(cpu) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut only = CpuSet::new();
        only.set(cpu)?;
        Ok(sched_setaffinity(SELF, &only)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_stays_where_it_is_kept_until_all_are_allowed_again() {
        let all = Affinity::current().unwrap();
        let cpu = (0..1024).rfind(|cpu| all.contains(*cpu)).unwrap();
        all.keep_on(cpu).unwrap();
        let kept = Affinity::current().unwrap();
        assert_eq!((0..1024).filter(|c| kept.contains(*c)).collect::<Vec<_>>(), [cpu]);
        all.allow_all().unwrap();
        assert_eq!(Affinity::current().unwrap().0, all.0);
        assert!(all.keep_on(1023).is_err() || all.contains(1023));
    }
}
