//! A process with a role confines itself, does what its message says, and answers how it went.

use std::error::Error;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;
use crate::{ChildEnd, ControlSocket, ExitReason, receive, send};

crate::role! {
    static CONFINED: "test-confined", begins b"confined\0", runs confined;
}

const STRICT: Policy = Policy {
    thread: "test",
    rules: &[&[
        allow(libc::SYS_sendmsg),
        allow(libc::SYS_write),
        allow(libc::SYS_close),
        allow(libc::SYS_munmap),
        allow(libc::SYS_sigaltstack),
        allow(libc::SYS_exit_group),
        allow(libc::SYS_rt_sigprocmask),
        allow_when(libc::SYS_fcntl, &[When::Is(1, libc::F_GETFD as u32)]),
        pretend_missing(libc::SYS_openat),
    ]],
};

fn confined(socket: OwnedFd) -> Result<(), Box<dyn Error>> {
    let mut buffer = Vec::new();
    let Some(mut descriptors) = receive(&socket, &mut buffer)? else {
        return Ok(());
    };
    let message = String::from_utf8(buffer.split_off(b"confined\0".len()))?;
    let (user, what) = message.split_once(' ').ok_or("no message")?;
    if user == "nobody" {
        become_nobody()?;
    }
    if what == "open-files" {
        let usual = Rlimit {
            current: Some(64),
            ..getrlimit(Resource::Nofile)
        };
        setrlimit(Resource::Nofile, usual)?;
    }
    let stray = File::open("/dev/null")?;
    let mut kept = Confinement::default();
    kept.descriptors
        .push(std::os::fd::AsRawFd::as_raw_fd(&socket));
    let share = descriptors.pop();
    if let Some(descriptor) = &share {
        kept.descriptors
            .push(std::os::fd::AsRawFd::as_raw_fd(descriptor));
        let access = if what == "read-only" {
            Access::Read
        } else {
            Access::Write
        };
        kept.directories.push((descriptor.as_fd(), access));
    }
    let missing = confine(&kept);
    // It is closed already; nobody owns the number.
    let stray = std::os::fd::IntoRawFd::into_raw_fd(stray);
    let answer = match missing.first() {
        Some(missing) => missing.to_string(),
        None => attempt(what, stray, share.as_ref()),
    };
    send(&socket, answer.as_bytes(), &[])?;
    Ok(())
}

fn become_nobody() -> Result<(), Box<dyn Error>> {
    let (user, group) = (65_534, 65_534);
    // SAFETY: these calls take numbers only; there is one thread. The last makes `/proc/self` this
    // user's own, as it is for one who has logged in.
    let done = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(group, group, group) == 0
            && libc::setresuid(user, user, user) == 0
            && libc::prctl(libc::PR_SET_DUMPABLE, 1) == 0
    };
    match done {
        true => Ok(()),
        false => Err(io::Error::last_os_error().into()),
    }
}

fn attempt(what: &str, stray: RawFd, share: Option<&OwnedFd>) -> String {
    let told = |result: io::Result<()>| match result {
        Ok(()) => "it worked".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    let open_in_share = |flags| match share {
        Some(share) => rustix::fs::openat(share, "file", flags, rustix::fs::Mode::RUSR).map(drop),
        None => Ok(()),
    };
    match what {
        "open" => told(File::open("/etc/passwd").map(drop)),
        "list" => told(std::fs::read_dir("/").map(|entries| {
            assert_eq!(entries.count(), 0, "the root is not empty");
        })),
        "create" => told(File::create("/file").map(drop)),
        "connect" => told(TcpStream::connect("127.0.0.1:9").map(drop)),
        "execute" => told(Command::new("/bin/true").status().map(drop)),
        "stray" => {
            // SAFETY: the call takes numbers only.
            let open = unsafe { libc::fcntl(stray, libc::F_GETFD) } >= 0;
            told(if open {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            })
        }
        "capabilities" => {
            let sets = rustix::thread::capabilities(None);
            format!("{:?}", sets.map(|sets| sets.permitted.bits()))
        }
        "open-files" => {
            let limit = getrlimit(Resource::Nofile);
            format!(
                "{:?}",
                (limit.current > Some(64), limit.current == limit.maximum)
            )
        }
        "share" => told(open_in_share(rustix::fs::OFlags::RDWR).map_err(Into::into)),
        "read-only" => {
            let read = open_in_share(rustix::fs::OFlags::RDONLY).map_err(Into::into);
            let write = open_in_share(rustix::fs::OFlags::WRONLY).map_err(Into::into);
            format!("{} {}", told(read), told(write))
        }
        filtered => {
            let filter = Filter::compile(&STRICT).map_err(io::Error::other);
            if let Err(error) = filter.and_then(|filter| filter.install()) {
                return error.to_string();
            }
            under_filter(filtered)
        }
    }
}

/// Makes a system call under the strict policy.
fn under_filter(what: &str) -> String {
    let number = match what {
        "allowed" => return format!("{:?}", rustix::io::fcntl_getfd(io::stderr()).is_ok()),
        "pretended" => return format!("{:?}", File::open("/").map(drop).map_err(|e| e.kind())),
        "other-argument" => {
            return format!("{:?}", rustix::fs::fcntl_getfl(io::stderr()).is_ok());
        }
        "socket" => libc::SYS_socket,
        "fork" => libc::SYS_fork,
        "exec" => libc::SYS_execve,
        "ptrace" => libc::SYS_ptrace,
        other => return format!("what is {other}?"),
    };
    // SAFETY: the filter ends the process before the call is made; it would fail by its arguments.
    let result = unsafe { libc::syscall(number, -1, 0, 0, 0) };
    format!("it came back with {result}")
}

async fn run_as(user: &str, what: &str, share: Option<&Path>) -> (String, ChildEnd) {
    let (ours, theirs) = ControlSocket::pair().unwrap();
    let message = format!("confined\0{user} {what}");
    let share = share.map(|path| File::open(path).unwrap());
    let descriptors: Vec<_> = share.iter().map(AsFd::as_fd).collect();
    ours.send(message.as_bytes(), &descriptors).await.unwrap();
    let process = CONFINED.start(&crate::own_executable(), theirs).unwrap();
    let mut buffer = Vec::new();
    let answered = ours.receive(&mut buffer).await.unwrap().is_some();
    let end = process.ended().await;
    let answer = if answered { buffer } else { Vec::new() };
    (String::from_utf8(answer).unwrap(), end)
}

async fn answer(what: &str) -> String {
    let (answer, end) = run_as("caller", what, None).await;
    assert_eq!(end.reason, ExitReason::Status(0), "{}", end.last_words);
    answer
}

#[tokio::test]
async fn files_and_sockets_are_out_of_reach() {
    assert_eq!(answer("open").await, "NotFound");
    assert_eq!(answer("list").await, "PermissionDenied");
    assert_ne!(answer("create").await, "it worked");
    assert_ne!(answer("connect").await, "it worked");
    assert_eq!(answer("execute").await, "NotFound");
}

#[tokio::test]
async fn descriptors_that_were_not_kept_are_closed_and_no_capability_is_left() {
    assert_eq!(answer("stray").await, "Uncategorized");
    assert_eq!(answer("capabilities").await, "Ok(0)");
}

#[tokio::test]
async fn limit_of_open_files_is_as_high_as_the_host_lets_it() {
    assert_eq!(answer("open-files").await, "(true, true)");
}

#[tokio::test]
async fn an_ordinary_user_is_confined_as_well() {
    for (what, expected) in [("open", "NotFound"), ("capabilities", "Ok(0)")] {
        let (answer, end) = run_as("nobody", what, None).await;
        assert_eq!(answer, expected, "{}", end.last_words);
    }
}

#[tokio::test]
async fn files_of_a_kept_directory_can_be_opened_as_it_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();

    let (write, _) = run_as("caller", "share", Some(folder.path())).await;
    let (read_only, _) = run_as("caller", "read-only", Some(folder.path())).await;

    assert_eq!(write, "it worked");
    assert_eq!(read_only, "it worked PermissionDenied");
}

#[tokio::test]
async fn calls_beside_the_policy_end_the_process_with_last_words() {
    for (what, number) in [
        ("socket", libc::SYS_socket),
        ("fork", libc::SYS_fork),
        ("exec", libc::SYS_execve),
        ("ptrace", libc::SYS_ptrace),
        ("other-argument", libc::SYS_fcntl),
    ] {
        let (answer, end) = run_as("caller", what, None).await;

        assert_eq!(answer, "");
        assert_eq!(end.reason, ExitReason::Status(71));
        let words = format!("ended: a test thread made system call {number},");
        assert!(end.last_words.contains(&words), "{}", end.last_words);
    }
}

#[tokio::test]
async fn calls_of_the_policy_work_and_missing_ones_fail() {
    assert_eq!(answer("allowed").await, "true");
    assert_eq!(answer("pretended").await, "Err(Unsupported)");
}
