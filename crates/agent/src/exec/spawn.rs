//! Starting a process.
//!
//! As posix_spawn(3) does it: the new process shares the agent's memory, and the thread that starts it
//! stands still, until the program is executed. So it costs nothing however large the agent is, and it
//! cannot deadlock on another thread's locks, because nothing in the new process takes one: it makes
//! system calls and nothing else. What it needs is prepared before.

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;

/// Stack of the new process until the program is executed, in bytes.
const STACK_BYTES: usize = 32 << 10;
/// Limits of open files: what programs expect, and what those that want more may raise it to.
static OPEN_FILES: libc::rlimit64 = libc::rlimit64 {
    rlim_cur: 1024,
    rlim_max: 524_288,
};

/// A process to be started.
pub(super) struct Prepared {
    /// Where the program may be, in order.
    pub(super) programs: Vec<CString>,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) directory: CString,
    /// Where to start where `directory` is only a wish.
    pub(super) other_directory: Option<CString>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// Whether standard input is the terminal that controls the process.
    pub(super) terminal: bool,
}

/// Which step of a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Start,
    Session,
    Terminal,
    Streams,
    User,
    Directory,
    Execute,
}

/// What the new process works with, and where it leaves its error.
struct Plan {
    programs: *const *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    directory: *const c_char,
    other_directory: *const c_char,
    uid: u32,
    gid: u32,
    groups: *const u32,
    group_count: usize,
    streams: [RawFd; 3],
    terminal: bool,
    privileged: bool,
    failed: Option<(Step, c_int)>,
}

/// Starts it. On return the program is being executed, or the start failed.
pub(super) fn spawn(prepared: &Prepared) -> Result<Pid, (Step, std::io::Error)> {
    let programs = pointers(&prepared.programs);
    let arguments = pointers(&prepared.arguments);
    let environment = pointers(&prepared.environment);
    let stream = |stream: &OwnedFd| stream.as_raw_fd();
    let mut plan = Plan {
        programs: programs.as_ptr(),
        arguments: arguments.as_ptr(),
        environment: environment.as_ptr(),
        directory: prepared.directory.as_ptr(),
        other_directory: prepared
            .other_directory
            .as_ref()
            .map_or(ptr::null(), |directory| directory.as_ptr()),
        uid: prepared.uid,
        gid: prepared.gid,
        groups: prepared.groups.as_ptr(),
        group_count: prepared.groups.len(),
        streams: [
            stream(&prepared.stdin),
            stream(&prepared.stdout),
            stream(&prepared.stderr),
        ],
        terminal: prepared.terminal,
        privileged: rustix::process::geteuid().is_root(),
        failed: None,
    };
    let mut stack = vec![0u128; STACK_BYTES / size_of::<u128>()];
    let started = clone(&mut plan, &mut stack);
    match (started, plan.failed) {
        (Ok(pid), None) => Ok(pid),
        (Ok(_), Some((step, error))) => Err((step, std::io::Error::from_raw_os_error(error))),
        (Err(error), _) => Err((Step::Start, error)),
    }
}

fn clone(plan: &mut Plan, stack: &mut [u128]) -> std::io::Result<Pid> {
    // SAFETY: `sigset_t` is plain data, for which zeros are a value; sigfillset fills it.
    let (mut all, mut before) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: both sets live on this stack. With every signal blocked no handler of this process can
    // run in the new one.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    // SAFETY: `child` runs on `stack`, whose end is aligned to 16 bytes, with `plan`; both outlive its
    // use of them because CLONE_VFORK holds this thread until the program is executed or the process
    // has ended. `child` makes system calls only.
    let pid = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            ptr::from_mut(plan).cast(),
        )
    };
    let error = std::io::Error::last_os_error();
    // SAFETY: `before` was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    Pid::from_raw(pid).filter(|_| pid > 0).ok_or(error)
}

/// A list that ends with a null pointer.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr());
    pointers.chain([ptr::null()]).collect()
}

/// What the new process does. It shares the agent's memory: it must not allocate, lock or panic.
extern "C" fn child(plan: *mut c_void) -> c_int {
    let plan = plan.cast::<Plan>();
    // SAFETY: `clone` passes a plan that lives on while the parent stands still, and nobody else uses
    // it meanwhile.
    let plan = unsafe { &mut *plan };
    let failed = become_program(plan);
    // SAFETY: the thread's own error number.
    let error = unsafe { *libc::__errno_location() };
    plan.failed = Some((failed, error));
    127
}

/// Returns the step that failed.
fn become_program(plan: &Plan) -> Step {
    // SAFETY: all of these are bare system calls with descriptors, numbers and pointers that the
    // parent prepared. Users are changed by the system calls themselves: the C library's functions
    // would change the agent's other threads.
    unsafe {
        reset_signals();
        if libc::setsid() < 0 {
            return Step::Session;
        }
        // The agent is spared when memory runs out; its children are not. /proc may be missing.
        write_file(c"/proc/self/oom_score_adj".as_ptr(), b"0");
        let limit = &raw const OPEN_FILES;
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_NOFILE,
            limit,
            ptr::null::<c_void>(),
        );
        if plan.terminal && libc::ioctl(plan.streams[0], libc::TIOCSCTTY, 0) < 0 {
            return Step::Terminal;
        }
        let mut target = 0;
        while target < 3 {
            // They are above 2, so none of them is lost here.
            if libc::dup2(plan.streams[target as usize], target) < 0 {
                return Step::Streams;
            }
            target += 1;
        }
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        libc::umask(0o022);
        if plan.privileged {
            let groups = plan.groups;
            if libc::syscall(libc::SYS_setgroups, plan.group_count, groups) < 0
                || libc::syscall(libc::SYS_setresgid, plan.gid, plan.gid, plan.gid) < 0
                || libc::syscall(libc::SYS_setresuid, plan.uid, plan.uid, plan.uid) < 0
            {
                return Step::User;
            }
        }
        if libc::chdir(plan.directory) < 0
            && (plan.other_directory.is_null() || libc::chdir(plan.other_directory) < 0)
        {
            return Step::Directory;
        }
        unblock_signals();
        execute(plan);
    }
    Step::Execute
}

/// Tries one program after the other, as execvp(3) does; returns with the error that says most.
///
/// # Safety
/// As [`become_program`].
unsafe fn execute(plan: &Plan) {
    let mut refused = false;
    let mut next = plan.programs;
    // SAFETY: the lists end with null pointers, and their strings live on in the parent.
    unsafe {
        while !(*next).is_null() {
            libc::execve(*next, plan.arguments, plan.environment);
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => refused = true,
                _ => return,
            }
            next = next.add(1);
        }
        if refused {
            *libc::__errno_location() = libc::EACCES;
        }
    }
}

/// # Safety
/// Every signal must be blocked.
unsafe fn reset_signals() {
    let mut signal = 1;
    while signal <= 64 {
        // SAFETY: zeros are the default action in the kernel's own structure, of at most four words;
        // the C library's function would leave out the signals that it keeps for itself. The table is
        // the new process's own.
        unsafe {
            let action = [0u64; 4];
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                ptr::null::<c_void>(),
                size_of::<u64>(),
            );
        }
        signal += 1;
    }
}

/// # Safety
/// All handlers must have been reset.
unsafe fn unblock_signals() {
    // SAFETY: an empty set is passed, of the size that the kernel expects.
    unsafe {
        let none = 0u64;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null::<c_void>(),
            size_of::<u64>(),
        );
    }
}

/// # Safety
/// `path` must be a string that ends with a zero byte.
unsafe fn write_file(path: *const c_char, content: &[u8]) {
    // SAFETY: the path is the caller's promise; the content is a slice.
    unsafe {
        let file = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, content.as_ptr().cast(), content.len());
            libc::close(file);
        }
    }
}
