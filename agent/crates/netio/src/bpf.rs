//! eBPF programs of a few instructions, written down rather than compiled: what it takes to load one.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// Commands, types and helpers of `linux/bpf.h`.
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
pub(crate) const BPF_MAP_TYPE_HASH: u32 = 1;
pub(crate) const BPF_MAP_TYPE_ARRAY: u32 = 2;
pub(crate) const BPF_F_MMAPABLE: u32 = 1 << 10;
pub(crate) const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
pub(crate) const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
pub(crate) const MAP_LOOKUP_ELEM: i32 = 1;
pub(crate) const GET_SMP_PROCESSOR_ID: i32 = 8;
pub(crate) const SKB_LOAD_BYTES: i32 = 26;
pub(crate) const SKB_CHANGE_HEAD: i32 = 43;
pub(crate) const KTIME_GET_BOOT_NS: i32 = 125;
pub(crate) const REDIRECT_NEIGH: i32 = 152;
pub(crate) const CHECK_MTU: i32 = 163;
/// Of [`CHECK_MTU`]: whether the segments of a super-packet fit.
pub(crate) const BPF_MTU_CHK_SEGS: i32 = 1;

/// Programs may call what is for programs under the GPL only.
const LICENSE: &CStr = c"Dual BSD/GPL";

/// A program that is being written. Registers are numbered: 0 is the result, 1 to 5 what helpers are
/// called with and do not keep, 6 to 9 are kept, 10 is the end of the stack.
#[derive(Debug, Default)]
pub(crate) struct Code(Vec<u64>);

/// A jump whose target is not known yet.
#[must_use]
pub(crate) struct Jump(usize);

impl Code {
    fn op(&mut self, code: u8, to: u8, from: u8, offset: i16, value: i32) -> &mut Self {
        let registers = to | from << 4;
        self.0.push(
            u64::from(code)
                | u64::from(registers) << 8
                | u64::from(offset.cast_unsigned()) << 16
                | u64::from(value.cast_unsigned()) << 32,
        );
        self
    }

    pub(crate) fn load_word(&mut self, to: u8, from: u8, offset: i16) -> &mut Self {
        self.op(0x61, to, from, offset, 0)
    }

    pub(crate) fn store_word(&mut self, to: u8, offset: i16, from: u8) -> &mut Self {
        self.op(0x63, to, from, offset, 0)
    }

    pub(crate) fn store_double(&mut self, to: u8, offset: i16, from: u8) -> &mut Self {
        self.op(0x7b, to, from, offset, 0)
    }

    /// Stores a constant word.
    pub(crate) fn store_value(&mut self, to: u8, offset: i16, value: i32) -> &mut Self {
        self.op(0x62, to, 0, offset, value)
    }

    pub(crate) fn copy(&mut self, to: u8, from: u8) -> &mut Self {
        self.op(0xbf, to, from, 0, 0)
    }

    pub(crate) fn set(&mut self, to: u8, value: i32) -> &mut Self {
        self.op(0xb7, to, 0, 0, value)
    }

    pub(crate) fn add(&mut self, to: u8, value: i32) -> &mut Self {
        self.op(0x07, to, 0, 0, value)
    }

    pub(crate) fn and(&mut self, to: u8, value: i32) -> &mut Self {
        self.op(0x57, to, 0, 0, value)
    }

    pub(crate) fn or(&mut self, to: u8, from: u8) -> &mut Self {
        self.op(0x4f, to, from, 0, 0)
    }

    pub(crate) fn map(&mut self, to: u8, map: BorrowedFd<'_>) -> &mut Self {
        // Two instructions' worth: a pseudo source says that the value is a map's descriptor.
        self.op(0x18, to, 1, 0, map.as_raw_fd()).op(0, 0, 0, 0, 0)
    }

    pub(crate) fn call(&mut self, helper: i32) -> &mut Self {
        self.op(0x85, 0, 0, 0, helper)
    }

    pub(crate) fn exit(&mut self) -> &mut Self {
        self.op(0x95, 0, 0, 0, 0)
    }

    pub(crate) fn jump(&mut self) -> Jump {
        self.op(0x05, 0, 0, 0, 0);
        Jump(self.0.len())
    }

    pub(crate) fn jump_if(&mut self, register: u8, value: i32) -> Jump {
        self.op(0x15, register, 0, 0, value);
        Jump(self.0.len())
    }

    pub(crate) fn jump_unless(&mut self, register: u8, value: i32) -> Jump {
        self.op(0x55, register, 0, 0, value);
        Jump(self.0.len())
    }

    /// Jumps that were written before lead here.
    pub(crate) fn land(&mut self, jumps: impl IntoIterator<Item = Jump>) -> &mut Self {
        for Jump(after) in jumps {
            let distance = u64::try_from(self.0.len() - after).unwrap_or_default();
            if let Some(jump) = after.checked_sub(1).and_then(|at| self.0.get_mut(at)) {
                *jump |= (distance & 0xffff) << 16;
            }
        }
        self
    }

    /// Has the kernel check and compile it.
    ///
    /// # Errors
    /// The kernel's: it lacks a helper, finds fault with the program, or wants `CAP_BPF`.
    pub(crate) fn load(&self, program_type: u32) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Attributes {
            program_type: u32,
            instructions: u32,
            code: u64,
            license: u64,
        }
        if cfg!(target_endian = "big") {
            // Instructions are put together for the others.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut attributes = Attributes {
            program_type,
            instructions: u32::try_from(self.0.len()).map_err(io::Error::other)?,
            code: address(self.0.as_ptr()),
            license: address(LICENSE.as_ptr()),
        };
        // SAFETY: these are the attributes of this command; both pointers outlive the call.
        let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }?;
        // SAFETY: a new descriptor that nobody else has; made with close-on-exec.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Makes a map.
///
/// # Errors
/// The kernel's.
pub(crate) fn create_map(
    map_type: u32,
    (key_size, value_size): (usize, usize),
    entries: usize,
    map_flags: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    let word = |number| u32::try_from(number).map_err(io::Error::other);
    let mut attributes = Attributes {
        map_type,
        key_size: word(key_size)?,
        value_size: word(value_size)?,
        max_entries: word(entries)?,
        map_flags,
    };
    // SAFETY: these are the attributes of this command, without pointers.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: a new descriptor that nobody else has; made with close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
struct Element {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Sets the value of a key.
///
/// # Errors
/// The kernel's, `E2BIG` if the map is full.
///
/// # Safety
/// `map` must have keys and values of these sizes.
pub(crate) unsafe fn update<const K: usize, const V: usize>(
    map: BorrowedFd<'_>,
    key: &[u8; K],
    value: &[u8; V],
) -> io::Result<()> {
    let (key, value) = (address(key.as_ptr()), address(value.as_ptr()));
    let mut element = Element { map: map.as_raw_fd().cast_unsigned(), key, value, flags: 0 };
    // SAFETY: these are the attributes of this command; the caller vouches for the sizes.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut element) }.map(drop)
}

/// Takes a key out.
///
/// # Errors
/// The kernel's, `NotFound` if it is not in.
///
/// # Safety
/// `map` must have keys of this size.
pub(crate) unsafe fn delete<const K: usize>(map: BorrowedFd<'_>, key: &[u8; K]) -> io::Result<()> {
    let key = address(key.as_ptr());
    let mut element = Element { map: map.as_raw_fd().cast_unsigned(), key, value: 0, flags: 0 };
    // SAFETY: these are the attributes of this command; the caller vouches for the size.
    unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut element) }.map(drop)
}

/// The kernel's number of a program.
///
/// # Errors
/// The kernel's.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    #[repr(C)]
    struct Attributes {
        fd: u32,
        len: u32,
        info: u64,
    }
    /// The beginning of `struct bpf_prog_info`; the kernel fills as much as there is room.
    #[repr(C)]
    struct Info {
        program_type: u32,
        id: u32,
    }
    let mut info = Info { program_type: 0, id: 0 };
    let mut attributes = Attributes {
        fd: program.as_raw_fd().cast_unsigned(),
        len: size_of::<Info>() as u32,
        info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    // SAFETY: these are the attributes of this command; `info` has room for `len` bytes.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info.id)
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// Calls `bpf(2)`.
///
/// # Safety
/// `attributes` must be those of `command`, with valid pointers. Some commands write into them.
unsafe fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: as the caller vouches; the kernel takes what is not given as zero.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
