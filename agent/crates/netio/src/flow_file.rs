//! A file of fixed-size records, mapped into memory, that outlives the process: the flow table's
//! shadow on `/run`.
//!
//! Layout: a header of one page (magic, record length, boot id), then slots of 8 + `RECORD` bytes
//! rounded up to 8. The first word of a slot is 0 if it is empty, else a checksum of the record and
//! its index; it is cleared before the record is written and set after, so that a record torn by the
//! death of the process is recognised and left out.
//!
//! The file takes room as records come, a chunk at a time. A chunk is allocated before it is written to:
//! should `/run` be full by then, its records are not kept, and there is no signal. That there is room
//! for all of them is checked when the file is opened.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Whence, lseek};

#[cfg(test)]
mod tests;

/// Names the layout; a change of it changes the last digit.
const MAGIC: &[u8; 8] = b"weftfl01";
/// The header takes a page, so that the slots begin aligned.
const HEADER_LEN: usize = 4096;
/// What is allocated at once, in bytes: whole pages of any size there is.
const CHUNK: usize = 64 << 10;
/// Bytes of the header in use: magic 8 + record length 8 + boot id 36.
const HEADER_USED: usize = 52;

/// Why the flow file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FlowFileError {
    /// Another process has it open.
    #[error("the flow file is in use: is a datapath running already?")]
    Busy,
    /// There is no room for all records.
    #[error("no room for the flow file of {bytes} bytes: enlarge /run or make the table smaller")]
    NoSpace {
        /// Size it would have.
        bytes: u64,
    },
    /// The number of records is zero or beyond the address space.
    #[error("a flow file cannot have {capacity} records")]
    Capacity {
        /// Records asked for.
        capacity: usize,
    },
    /// Any other error of the file system.
    #[error("cannot use the flow file: {0}")]
    Io(#[from] io::Error),
}

/// A memory-mapped array of records of `RECORD` bytes.
///
/// Several threads may store at once, each to indices of its own. Storing is a few memory writes and
/// never blocks.
#[derive(Debug)]
pub struct FlowFile<const RECORD: usize> {
    /// INVARIANT: points to a mapping of `length` bytes, page-aligned, that lives as long as `self`.
    base: NonNull<AtomicU64>,
    length: usize,
    capacity: usize,
    /// For each chunk, whether the file has room for all of it.
    allocated: Box<[AtomicBool]>,
    /// Holds the lock.
    file: File,
}

// SAFETY: the mapping is reached through atomics only, and is unmapped when nobody refers to it.
unsafe impl<const RECORD: usize> Send for FlowFile<RECORD> {}
// SAFETY: as above.
unsafe impl<const RECORD: usize> Sync for FlowFile<RECORD> {}

impl<const RECORD: usize> FlowFile<RECORD> {
    /// Words of a record.
    const WORDS: usize = RECORD.div_ceil(8);
    /// Words of a slot: the checksum and the record.
    const SLOT: usize = 1 + Self::WORDS;

    /// Opens the file at `path`, with mode 0600, for records 0 to `capacity` - 1.
    ///
    /// Records of an earlier process are kept where they were, also if `capacity` has grown or
    /// shrunk. A file of another layout, record length or boot is emptied, since times in it mean
    /// nothing any more.
    ///
    /// # Errors
    /// See [`FlowFileError`].
    pub fn open(path: &Path, capacity: usize) -> Result<Self, FlowFileError> {
        let length = capacity
            .checked_mul(Self::SLOT * 8)
            .and_then(|slots| slots.checked_add(HEADER_LEN))
            .filter(|length| capacity > 0 && i64::try_from(*length).is_ok())
            .ok_or(FlowFileError::Capacity { capacity })?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => FlowFileError::Busy,
            TryLockError::Error(error) => error.into(),
        })?;
        prepare(&mut file, RECORD, length)?;
        let base = map(&file, length)?;
        let allocated = (0..length.div_ceil(CHUNK)).map(|_| AtomicBool::new(false)).collect();
        let opened = Self { base, length, capacity, allocated, file };
        opened.find_data()?;
        Ok(opened)
    }

    /// Takes note of the chunks that an earlier process wrote to.
    fn find_data(&self) -> Result<(), FlowFileError> {
        let seek = |from, whence| match lseek(&self.file, from, whence) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENXIO) => Ok(None),
            Err(error) => Err(io::Error::from(error)),
        };
        let mut from = 0;
        while let Some(data) = seek(from, Whence::SeekData)? {
            let end = seek(data, Whence::SeekHole)?.unwrap_or(data);
            let (first, last) = (usize::try_from(data), usize::try_from(end));
            if !self.allocate(first.unwrap_or(0)..last.unwrap_or(0)) {
                return Err(FlowFileError::NoSpace { bytes: self.length as u64 });
            }
            from = end;
        }
        Ok(())
    }

    /// Makes sure that the file has room for these bytes.
    fn allocate(&self, bytes: Range<usize>) -> bool {
        (bytes.start / CHUNK..bytes.end.div_ceil(CHUNK)).all(|chunk| {
            let Some(allocated) = self.allocated.get(chunk) else { return false };
            if allocated.load(Ordering::Relaxed) {
                return true;
            }
            let (start, end) = (chunk * CHUNK, ((chunk + 1) * CHUNK).min(self.length));
            let as_offset = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let done = posix_fallocate(&self.file, as_offset(start), as_offset(end - start));
            allocated.store(done.is_ok(), Ordering::Relaxed);
            done.is_ok()
        })
    }

    fn is_allocated(&self, bytes: &Range<usize>) -> bool {
        let chunks = self.allocated.get(bytes.start / CHUNK..bytes.end.div_ceil(CHUNK));
        chunks.is_some_and(|chunks| chunks.iter().all(|c| c.load(Ordering::Relaxed)))
    }

    fn bytes_of(index: usize) -> Option<Range<usize>> {
        let start = index.checked_mul(Self::SLOT * 8)?.checked_add(HEADER_LEN)?;
        Some(start..start.checked_add(Self::SLOT * 8)?)
    }

    /// Number of records.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Every whole record that is there, with its index.
    pub fn load(&self) -> impl Iterator<Item = (usize, [u8; RECORD])> + '_ {
        (0..self.capacity).filter_map(|index| Some((index, self.get(index)?)))
    }

    /// One record, if it is there and whole.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<[u8; RECORD]> {
        let (sum, words) = self.slot(index)?;
        let stored = sum.load(Ordering::Acquire);
        if stored == 0 {
            return None;
        }
        let mut record = [0; RECORD];
        let mut check = Checksum::new(index);
        for (chunk, word) in record.chunks_mut(8).zip(words) {
            let word = word.load(Ordering::Relaxed);
            check.add(word);
            for (to, from) in chunk.iter_mut().zip(word.to_le_bytes()) {
                *to = from;
            }
        }
        (check.finish() == stored).then_some(record)
    }

    /// Writes a record. An index beyond the capacity, or one that there is no room for any more, is
    /// ignored and gives `false`.
    pub fn store(&self, index: usize, record: &[u8; RECORD]) -> bool {
        if index < self.capacity && !Self::bytes_of(index).is_some_and(|b| self.allocate(b)) {
            return false;
        }
        let Some((sum, words)) = self.slot(index) else { return false };
        sum.store(0, Ordering::Relaxed);
        // A process that dies between two writes must not leave them in another order.
        fence(Ordering::SeqCst);
        let mut check = Checksum::new(index);
        for (chunk, word) in record.chunks(8).zip(words) {
            let mut bytes = [0; 8];
            for (to, from) in bytes.iter_mut().zip(chunk) {
                *to = *from;
            }
            let value = u64::from_le_bytes(bytes);
            check.add(value);
            word.store(value, Ordering::Relaxed);
        }
        sum.store(check.finish(), Ordering::Release);
        true
    }

    /// Empties a record. An index beyond the capacity is ignored.
    pub fn erase(&self, index: usize) {
        if let Some((sum, _)) = self.slot(index) {
            sum.store(0, Ordering::Release);
        }
    }

    /// `None` beyond the capacity and where the file has no room: nothing was written there.
    fn slot(&self, index: usize) -> Option<(&AtomicU64, &[AtomicU64])> {
        let bytes = Self::bytes_of(index).filter(|b| self.is_allocated(b))?;
        // SAFETY: the mapping is `length` bytes of initialised memory, aligned to a page, shared
        // with nobody but users of the same atomics, and lives as long as `self`.
        let all = unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length / 8) };
        all.get(bytes.start / 8..bytes.end / 8)?.split_first()
    }
}

impl<const RECORD: usize> Drop for FlowFile<RECORD> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length and nothing refers to it.
        let _ = unsafe { munmap(self.base.cast(), self.length) };
    }
}

/// Multiply-and-rotate over 64-bit words: enough to find a torn record, and two instructions a word.
struct Checksum(u64);

impl Checksum {
    fn new(index: usize) -> Self {
        Self(index as u64 ^ 0x9e37_79b9_7f4a_7c15)
    }

    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29);
    }

    /// Never zero, which means empty.
    fn finish(self) -> u64 {
        self.0 | 1
    }
}

/// Makes sure that the file has the right header and size, and that there is room for all of it.
fn prepare(file: &mut File, record: usize, length: usize) -> Result<(), FlowFileError> {
    let header = header(record)?;
    let mut found = Vec::new();
    Read::by_ref(file).take(HEADER_USED as u64).read_to_end(&mut found)?;
    if found != header {
        file.set_len(0)?;
    }
    let bytes = length as u64;
    file.set_len(bytes)?;
    let system = fstatvfs(&*file).map_err(io::Error::from)?;
    let free = system.blocks_available().saturating_mul(system.fragment_size());
    if free.saturating_add(file.metadata()?.blocks() * 512) < bytes {
        // What could be had is not kept: others need the space.
        file.set_len(0)?;
        return Err(FlowFileError::NoSpace { bytes });
    }
    // The header goes in last: without it the file is emptied again.
    if found != header {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header)?;
    }
    Ok(())
}

fn header(record: usize) -> io::Result<Vec<u8>> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let mut header = MAGIC.to_vec();
    header.extend((record as u64).to_le_bytes());
    header.extend(boot.trim().bytes().chain(std::iter::repeat(0)).take(36));
    Ok(header)
}

fn map(file: &File, length: usize) -> Result<NonNull<AtomicU64>, FlowFileError> {
    let size = NonZeroUsize::new(length).ok_or(FlowFileError::Capacity { capacity: 0 })?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice harms no other memory. The lock
    // keeps other users of this module from shortening the file while it is mapped.
    let base = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, file, 0) };
    Ok(base.map_err(io::Error::from)?.cast())
}
