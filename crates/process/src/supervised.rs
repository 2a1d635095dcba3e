use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::sys::{ExitWatch, Process};
use crate::{Child, ExitReason, LastWords};

/// A pipe holds 64 KiB; who goes on writing after the child's end is not listened to for ever.
const MOST_FINAL_READS: usize = 128;

/// What is known of a child that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildEnd {
    /// How.
    pub reason: ExitReason,
    /// The end of what it wrote to its error output.
    pub last_words: String,
}

/// A child that is followed to its end by a task of the runtime. Dropping this kills the child; the
/// task reaps it. Where the runtime shuts down first, the child is killed then and reaped all the
/// same.
#[derive(Debug)]
pub struct Supervised {
    process: Arc<Process>,
    end: watch::Receiver<Option<ChildEnd>>,
}

impl Supervised {
    /// Follows `child`. `errors` is the reading end of the pipe that it has as error output.
    /// Must be called in a runtime with I/O enabled.
    ///
    /// # Errors
    /// Where the runtime cannot watch the descriptors; the child is killed then.
    pub fn new(child: Child, errors: Option<OwnedFd>) -> io::Result<Self> {
        let process = child.process().clone();
        let watch = ExitWatch::new(process.clone())?;
        let errors = errors.map(pipe::Receiver::from_owned_fd).transpose()?;
        let (sender, end) = watch::channel(None);
        tokio::spawn(supervise(child, watch, errors, sender));
        Ok(Self { process, end })
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.process.pid().as_raw_pid().unsigned_abs()
    }

    /// A handle that can kill it and holds nothing of it.
    pub fn killer(&self) -> Killer {
        Killer(Arc::downgrade(&self.process))
    }

    /// Kills it now. Nothing happens to a child that has ended.
    pub fn kill(&self) {
        self.process.signal(Signal::KILL);
    }

    /// Waits until it has ended and was reaped.
    pub async fn ended(&self) -> ChildEnd {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await;
        match ended.ok().and_then(|end| end.clone()) {
            Some(end) => end,
            // The task went with its runtime, and killed the child.
            None => ChildEnd {
                reason: ExitReason::Signal(libc::SIGKILL),
                last_words: String::new(),
            },
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills a child that is still there.
#[derive(Clone, Debug)]
pub struct Killer(Weak<Process>);

impl Killer {
    /// Kills the child now, if it has not been let go of.
    pub fn kill(&self) {
        if let Some(process) = self.0.upgrade() {
            process.signal(Signal::KILL);
        }
    }
}

async fn supervise(
    mut child: Child,
    watch: ExitWatch,
    mut errors: Option<pipe::Receiver>,
    sender: watch::Sender<Option<ChildEnd>>,
) {
    let mut words = LastWords::default();
    let mut buffer = vec![0; 1024];
    let reason = loop {
        let read = async {
            match &mut errors {
                Some(errors) => errors.read(&mut buffer).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            read = read => match read {
                Ok(0) | Err(_) => errors = None,
                Ok(count) => words.push(&buffer[..count]),
            },
            _ended = watch.ended() => if let Some(reason) = child.try_reap() {
                break reason;
            },
        }
    };
    // What it wrote last may still be in the pipe, which the runtime may not have heard of. Not to
    // the end of file: a process that the child started may hold the other end.
    if let Some(errors) = &errors {
        for _ in 0..MOST_FINAL_READS {
            match rustix::io::read(errors, &mut buffer) {
                Ok(count @ 1..) => words.push(&buffer[..count]),
                _ => break,
            }
        }
    }
    drop((errors, watch, child));
    sender.send_replace(Some(ChildEnd {
        reason,
        last_words: words.text(),
    }));
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::time::Instant;

    use super::*;
    use crate::Program;

    fn shell(script: &str) -> (Child, OwnedFd) {
        let (reader, writer) = pipe().unwrap();
        let mut program = Program::new("/bin/sh");
        program
            .arguments(["-c", script])
            .descriptor(2, OwnedFd::from(writer));
        (program.spawn().unwrap(), reader.into())
    }

    fn is_child(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[tokio::test]
    async fn a_child_that_ends_is_reported_with_status_and_last_words() {
        let (child, errors) = shell("echo so it goes >&2; exit 7");
        let supervised = Supervised::new(child, Some(errors)).unwrap();

        let end = supervised.ended().await;

        assert_eq!(end.reason, ExitReason::Status(7));
        assert_eq!(end.last_words, "so it goes\n");
        assert!(!is_child(supervised.id()), "not reaped");
    }

    #[tokio::test]
    async fn a_child_that_writes_without_end_is_drained_and_can_be_killed() {
        let (child, errors) = shell("exec yes >&2");
        let supervised = Supervised::new(child, Some(errors)).unwrap();

        supervised.kill();
        let end = supervised.ended().await;

        assert_eq!(end.reason, ExitReason::Signal(libc::SIGKILL));
    }

    #[tokio::test]
    async fn more_error_output_than_a_pipe_holds_does_not_block_the_child() {
        let (child, errors) = shell("head -c 1000000 /dev/zero >&2; echo end >&2");
        let supervised = Supervised::new(child, Some(errors)).unwrap();

        let end = supervised.ended().await;

        assert_eq!(end.reason, ExitReason::Status(0));
        assert!(end.last_words.ends_with("end\n"));
    }

    #[test]
    fn a_runtime_that_shuts_down_takes_its_children_along() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let supervised = runtime.block_on(async {
            let (child, errors) = shell("exec sleep 1000");
            Supervised::new(child, Some(errors)).unwrap()
        });

        let start = Instant::now();
        drop(runtime);

        // The handle outlives the runtime; the reaper's thread takes the child in a moment.
        while is_child(supervised.id()) {
            assert!(start.elapsed().as_secs() < 30, "the child lives on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_dropped_child_that_was_never_supervised_is_reaped() {
        let (child, _errors) = shell("exec sleep 1000");
        let id = child.id();

        drop(child);

        let start = Instant::now();
        while is_child(id) {
            assert!(start.elapsed().as_secs() < 30, "the child lives on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named_in_the_error() {
        let error = Program::new("/nowhere/at-all").spawn().unwrap_err();

        assert!(error.to_string().contains("/nowhere/at-all"), "{error}");
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
    }

    #[cfg(target_os = "linux")] // it looks into /proc
    #[tokio::test]
    async fn descriptors_are_handed_over_by_number_and_no_others() {
        // The shell itself uses descriptor 10.
        const SCRIPT: &str = "echo a >&3; echo b >&4; n=0; while [ $n -lt 100 ]; do
            [ $n != 10 ] && [ -e /proc/$$/fd/$n ] && echo $n >&2; n=$((n + 1)); done";
        // Arrange: two files whose own numbers are each other's targets in the worst case.
        let (a_reader, a_writer) = pipe().unwrap();
        let (b_reader, b_writer) = pipe().unwrap();
        let (_leak, _other) = rustix::pipe::pipe().unwrap();
        let (errors, error_output) = pipe().unwrap();
        let mut program = Program::new("/bin/sh");
        program
            .arguments(["-c", SCRIPT])
            .variable("PATH", "/usr/bin:/bin")
            .descriptor(2, error_output)
            .descriptor(4, b_writer)
            .descriptor(3, a_writer);

        // Act
        let supervised = Supervised::new(program.spawn().unwrap(), Some(errors.into())).unwrap();
        let end = supervised.ended().await;

        // Assert
        let read = |fd: OwnedFd| io::read_to_string(std::fs::File::from(fd)).unwrap();
        assert_eq!(read(a_reader.into()), "a\n");
        assert_eq!(read(b_reader.into()), "b\n");
        assert_eq!(end.last_words, "0\n1\n2\n3\n4\n", "{:?}", end.reason);
    }
}
