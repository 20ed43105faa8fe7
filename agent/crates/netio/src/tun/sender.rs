//! On which CPU, and when, the last packet for each queue of a TUN device was sent.
//!
//! A packet that is read does not tell. So the device gets a filter program (`TUNSETFILTEREBPF`)
//! that lets everything pass and writes both down in an array that is mapped here: one load is all
//! that asking costs. On a kernel that does not take it, or without `CAP_BPF`, nobody knows.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use libc::c_ulong;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use weft_model::Timestamp;

use crate::bpf::{self, Code, GET_SMP_PROCESSOR_ID, KTIME_GET_BOOT_NS, MAP_LOOKUP_ELEM};
use crate::sys::ioctl_ptr;

/// `_IOR('T', 225, int)`
const TUNSETFILTEREBPF: c_ulong = 0x8004_54e1;

/// Offset in `struct __sk_buff`; for a TUN device the index of the queue.
const QUEUE_MAPPING: i16 = 12;

/// Of a note, these are the CPU; the rest are nanoseconds of `CLOCK_BOOTTIME`, exact to 4 us.
const CPU_BITS: u64 = 0xfff;

/// Who sent the last packet for a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The CPU that it was sent on.
    pub cpu: usize,
    /// When it came to the queue, exact to 4 us.
    pub at: Timestamp,
}

/// The notes about all queues of a device.
#[derive(Debug)]
pub(crate) struct Senders {
    notes: NonNull<AtomicU64>,
    queues: usize,
    /// Length of the mapping.
    size: NonZeroUsize,
}

// SAFETY: the mapping is shared memory of atomics, alive as long as this.
unsafe impl Send for Senders {}
// SAFETY: as above.
unsafe impl Sync for Senders {}

impl Senders {
    /// Has the device that `queue` is of write down who sends.
    pub(crate) fn watch(queue: BorrowedFd<'_>, queues: usize) -> io::Result<Self> {
        const NOTE_LEN: usize = size_of::<AtomicU64>();
        let sizes = (size_of::<u32>(), NOTE_LEN);
        let map = bpf::create_map(bpf::BPF_MAP_TYPE_ARRAY, sizes, queues, bpf::BPF_F_MMAPABLE)?;
        let program = program(map.as_fd()).load(bpf::BPF_PROG_TYPE_SOCKET_FILTER)?;
        let size = NonZeroUsize::new((queues * NOTE_LEN).next_multiple_of(4096));
        let size = size.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping; nothing of this process is overwritten.
        let notes =
            unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &map, 0) }?;
        let senders = Self { notes: notes.cast(), queues, size };
        set_filter(queue, program.as_raw_fd())?;
        Ok(senders)
    }

    /// Takes a program off that an earlier process put on the device.
    pub(crate) fn unwatch(queue: BorrowedFd<'_>) -> io::Result<()> {
        set_filter(queue, -1)
    }

    /// Who sent the last packet for `queue`; `None` before the first.
    pub(crate) fn last(&self, queue: usize) -> Option<Sender> {
        if queue >= self.queues {
            return None;
        }
        // SAFETY: the array has `queues` elements of eight bytes, and only atomic accesses.
        let note = unsafe { self.notes.add(queue).as_ref() }.load(Ordering::Relaxed);
        let cpu = usize::try_from(note & CPU_BITS).ok()?;
        (note != 0).then_some(Sender { cpu, at: Timestamp(note & !CPU_BITS) })
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        // SAFETY: mapped by `watch` with this size, and nobody has a reference to it.
        let _ = unsafe { munmap(self.notes.cast::<c_void>(), self.size.get()) };
    }
}

fn set_filter(queue: BorrowedFd<'_>, mut program: i32) -> io::Result<()> {
    // SAFETY: TUNSETFILTEREBPF reads one int.
    unsafe { ioctl_ptr(queue, TUNSETFILTEREBPF, &mut program) }
}

/// `notes[queue] = now with its last bits replaced by the CPU; keep the whole packet`
fn program(map: BorrowedFd<'_>) -> Code {
    const NOTE: u8 = 6;
    let cpu_bits = CPU_BITS as i32;
    let mut code = Code::default();
    code.load_word(0, 1, QUEUE_MAPPING).store_word(10, -4, 0);
    code.call(GET_SMP_PROCESSOR_ID).and(0, cpu_bits).copy(NOTE, 0);
    code.call(KTIME_GET_BOOT_NS).and(0, !cpu_bits).or(NOTE, 0);
    code.map(1, map).copy(2, 10).add(2, -4).call(MAP_LOOKUP_ELEM);
    let no_such_queue = code.jump_if(0, 0);
    code.store_double(0, 0, NOTE);
    // The length to keep.
    code.land([no_such_queue]).set(0, i32::MAX).exit();
    code
}
