//! Intel's ipsec-mb by way of `c/ipsec_mb.c`. A manager is for one thread, so each has its own.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use subtle::ConstantTimeEq;

use crate::{KEY_LEN, TAG_LEN};

type Nonce = [u8; 12];

unsafe extern "C" {
    fn weft_ipsec_mb_new() -> *mut c_void;
    fn weft_ipsec_mb_crypt(
        manager: *mut c_void,
        encrypt: c_int,
        key: *const u8,
        nonce: *const u8,
        data: *mut u8,
        len: usize,
        tag: *mut u8,
    ) -> c_int;
    fn free_mb_mgr(manager: *mut c_void);
}

thread_local! {
    static MANAGER: Option<Manager> = Manager::new();
}

/// True if the library has code for this CPU that is worth using.
pub(crate) fn is_usable() -> bool {
    MANAGER.with(Option::is_some)
}

/// Encrypts in place; `None` where the library is of no use.
pub(crate) fn seal(key: &[u8; KEY_LEN], nonce: &Nonce, packet: &mut [u8]) -> Option<[u8; TAG_LEN]> {
    MANAGER.with(|manager| manager.as_ref()?.crypt(true, key, nonce, packet))
}

/// Decrypts in place; false if `tag` is not the packet's.
pub(crate) fn open(
    key: &[u8; KEY_LEN],
    nonce: &Nonce,
    packet: &mut [u8],
    tag: &[u8; TAG_LEN],
) -> bool {
    let expected = MANAGER.with(|manager| manager.as_ref()?.crypt(false, key, nonce, packet));
    expected.is_some_and(|expected| expected.ct_eq(tag).into())
}

/// An `IMB_MGR`. The pointer keeps it from being shared between threads.
struct Manager(NonNull<c_void>);

impl Manager {
    fn new() -> Option<Self> {
        // SAFETY: takes nothing; returns a manager that is ours, or null.
        NonNull::new(unsafe { weft_ipsec_mb_new() }).map(Self)
    }

    /// Returns the tag of the ciphertext.
    fn crypt(
        &self,
        encrypt: bool,
        key: &[u8; KEY_LEN],
        nonce: &Nonce,
        packet: &mut [u8],
    ) -> Option<[u8; TAG_LEN]> {
        let mut tag = [0; TAG_LEN];
        // SAFETY: the manager is live and of this thread, and not in use: the call keeps nothing
        // when it returns. Key and nonce have the lengths that it reads, packet and tag those that
        // it writes.
        let done = unsafe {
            weft_ipsec_mb_crypt(
                self.0.as_ptr(),
                c_int::from(encrypt),
                key.as_ptr(),
                nonce.as_ptr(),
                packet.as_mut_ptr(),
                packet.len(),
                tag.as_mut_ptr(),
            )
        };
        (done == 1).then_some(tag)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // SAFETY: made by `alloc_mb_mgr`, and nobody else has it.
        unsafe { free_mb_mgr(self.0.as_ptr()) }
    }
}
