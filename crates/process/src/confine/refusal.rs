//! The last words of a process that made a system call that its filter does not allow.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;

/// Exit status of such a process.
const REFUSED: libc::c_int = 71;

thread_local! {
    /// The kind of this thread, for the message.
    static THREAD: Cell<&'static str> = const { Cell::new("unnamed") };
}

/// What the kernel tells of a refused call (`siginfo_t` of SIGSYS).
#[repr(C)]
struct Refused {
    signal: libc::c_int,
    error: libc::c_int,
    code: libc::c_int,
    address: *mut libc::c_void,
    call: libc::c_int,
    arch: libc::c_uint,
}

/// Has refusals on this thread told on standard error.
pub(super) fn watch(thread: &'static str) -> io::Result<()> {
    THREAD.set(thread);
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes is a valid action; the handler calls nothing but `write` and `_exit`, and
    // reads a thread-local that needs no initialisation.
    let result = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = refused as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, action, std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn refused(_: libc::c_int, info: *const Refused, _: *const libc::c_void) {
    // SAFETY: the kernel passes a valid structure of this signal.
    let call = unsafe { (*info).call };
    let mut line = Line::default();
    line.push(b"ended: a ");
    line.push(THREAD.get().as_bytes());
    line.push(b" thread made system call ");
    line.push_number(call.unsigned_abs());
    line.push(b", which its filter does not allow\n");
    // SAFETY: the buffer is valid for its length; both calls may be made in a signal handler.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length);
        libc::_exit(REFUSED)
    }
}

/// A line without allocation.
struct Line {
    bytes: [u8; 128],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 128],
            length: 0,
        }
    }
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut divisor = 1_000_000_000;
        let mut begun = false;
        while divisor > 0 {
            let digit = number / divisor % 10;
            begun |= digit > 0 || divisor == 1;
            if begun {
                self.push(&[b'0' + digit as u8]);
            }
            divisor /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_numbers_in_decimal_and_never_grows_too_long() {
        let mut line = Line::default();
        for number in [0, 7, 435, u32::MAX] {
            line.push_number(number);
            line.push(b" ");
        }
        assert_eq!(&line.bytes[..line.length], b"0 7 435 4294967295 ");
        line.push(&[b'x'; 200]);
        assert_eq!(line.length, 128);
    }
}
