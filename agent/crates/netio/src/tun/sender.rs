//! On which CPU, and when, the last packet for each queue of a TUN device was sent.
//!
//! A packet that is read does not tell. So the device gets a filter program (`TUNSETFILTEREBPF`)
//! that lets everything pass and writes both down in an array that is mapped here: two loads are
//! all that asking costs. Seventeen instructions are simpler written down than compiled and loaded by
//! a library; on a kernel that does not take them, or without `CAP_BPF`, nobody knows.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use libc::c_ulong;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use weft_model::Timestamp;

use crate::sys::ioctl_ptr;

/// `_IOR('T', 225, int)`
const TUNSETFILTEREBPF: c_ulong = 0x8004_54e1;

// `linux/bpf.h`
const BPF_MAP_CREATE: i32 = 0;
const BPF_PROG_LOAD: i32 = 5;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const MAP_LOOKUP_ELEM: i32 = 1;
const GET_SMP_PROCESSOR_ID: i32 = 8;
const KTIME_GET_BOOT_NS: i32 = 125;
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
        let map = create_map(queues)?;
        let program = load(&program(map.as_raw_fd()))?;
        let size = NonZeroUsize::new((queues * size_of::<AtomicU64>()).next_multiple_of(4096));
        let size = size.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping; nothing of this process is overwritten.
        let notes = unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &map, 0) }?;
        let senders = Self { notes: notes.cast(), queues, size };
        let mut fd = program.as_raw_fd();
        // SAFETY: TUNSETFILTEREBPF reads one int.
        unsafe { ioctl_ptr(queue, TUNSETFILTEREBPF, &mut fd) }?;
        Ok(senders)
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

/// An instruction of eBPF.
const fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let registers = dst | src << 4;
    code as u64
        | (registers as u64) << 8
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

/// `notes[queue] = now with its last bits replaced by the CPU; keep the whole packet`
fn program(map: i32) -> [u64; 17] {
    const LOAD_WORD: u8 = 0x61;
    const STORE_WORD: u8 = 0x63;
    const STORE_DOUBLE: u8 = 0x7b;
    const MOVE: u8 = 0xbf;
    const MOVE_IMMEDIATE: u8 = 0xb7;
    const AND_IMMEDIATE: u8 = 0x57;
    const OR: u8 = 0x4f;
    const ADD_IMMEDIATE: u8 = 0x07;
    const CALL: u8 = 0x85;
    const JUMP_IF_ZERO: u8 = 0x15;
    const EXIT: u8 = 0x95;
    const LOAD_MAP: u8 = 0x18;
    let cpu_bits = CPU_BITS as i32;
    [
        op(LOAD_WORD, 6, 1, QUEUE_MAPPING, 0),
        op(CALL, 0, 0, 0, GET_SMP_PROCESSOR_ID),
        op(MOVE, 7, 0, 0, 0),
        op(AND_IMMEDIATE, 7, 0, 0, cpu_bits),
        op(CALL, 0, 0, 0, KTIME_GET_BOOT_NS),
        op(AND_IMMEDIATE, 0, 0, 0, !cpu_bits),
        op(OR, 7, 0, 0, 0),
        op(STORE_WORD, 10, 6, -4, 0),
        op(LOAD_MAP, 1, 1, 0, map),
        op(0, 0, 0, 0, 0),
        op(MOVE, 2, 10, 0, 0),
        op(ADD_IMMEDIATE, 2, 0, 0, -4),
        op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        op(JUMP_IF_ZERO, 0, 0, 1, 0),
        op(STORE_DOUBLE, 0, 7, 0, 0),
        // The length to keep.
        op(MOVE_IMMEDIATE, 0, 0, 0, i32::MAX),
        op(EXIT, 0, 0, 0, 0),
    ]
}

fn create_map(queues: usize) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    let queues = u32::try_from(queues).map_err(io::Error::other)?;
    let attributes = Attributes {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: queues,
        map_flags: BPF_F_MMAPABLE,
    };
    // SAFETY: these are the attributes of this command, without pointers.
    unsafe { bpf(BPF_MAP_CREATE, &attributes) }
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        prog_type: u32,
        instructions: u32,
        code: u64,
        license: u64,
    }
    let attributes = Attributes {
        prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
        instructions: u32::try_from(program.len()).map_err(io::Error::other)?,
        code: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
    };
    // SAFETY: these are the attributes of this command; both pointers outlive the call.
    unsafe { bpf(BPF_PROG_LOAD, &attributes) }
}

/// Calls `bpf(2)` for a command that returns a descriptor.
///
/// # Safety
/// `attributes` must be those of `command`, with valid pointers.
unsafe fn bpf<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller vouches; the kernel takes what is not given as zero.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has; made with close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
