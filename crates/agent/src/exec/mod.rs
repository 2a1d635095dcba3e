//! Running a command for a connection.

pub(crate) mod environment;
mod session;
mod spawn;
mod streams;
mod users;

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use capsa_agent_protocol::exec::ExecRequest;
use capsa_agent_protocol::{Failure, FailureKind, Reply};

use crate::children::{self, Child};
use crate::serve::{Connection, Slot};
use environment::Variables;
use spawn::{Prepared, Step};
use streams::Streams;

/// Starts a command, answers, and carries its streams to its end.
pub(crate) fn serve(
    mut connection: Connection,
    slot: Slot,
    request: &ExecRequest,
) -> io::Result<()> {
    match start(request) {
        Ok((child, streams)) => {
            let pid = child.pid();
            let answered = connection.reply(&Reply::Started { pid });
            let (socket, incoming) = connection.into_parts();
            let session = session::Session::new(socket, incoming, child, streams, request.detached);
            let left_behind = match answered {
                Ok(()) => session.run(),
                // The host went before it began.
                Err(_) => session.abandon(),
            };
            drop(slot);
            session::drain(left_behind?);
            Ok(())
        }
        Err(failure) => connection.reply(&Reply::Failed(failure)),
    }
}

fn start(request: &ExecRequest) -> Result<(Arc<Child>, Streams), Failure> {
    let user = users::look_up(request.user.as_deref())?;
    let variables = environment::variables(request, &user);
    let Some(program) = request.arguments.first().filter(|one| !one.0.is_empty()) else {
        let text = "no program is named";
        return Err(Failure::new(FailureKind::CommandNotFound, text));
    };
    let (streams, theirs) = streams::open(request, user.uid)
        .map_err(|error| Failure::system(&error, "cannot make the command's streams"))?;
    let home = user.home.as_os_str().as_bytes().to_vec();
    let (directory, other_directory) = match &request.directory {
        Some(directory) => (directory.0.clone(), None),
        None => (home, Some(c"/".to_owned())),
    };
    let prepared = Prepared {
        programs: programs(&program.0, &variables)?,
        arguments: strings(request.arguments.iter().map(|one| one.0.clone()))?,
        environment: strings(
            variables
                .iter()
                .map(|(name, value)| [name.as_slice(), b"=", value.as_slice()].concat()),
        )?,
        directory: string(directory)?,
        other_directory,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        terminal: request.terminal.is_some(),
        stdin: theirs.stdin,
        stdout: theirs.stdout,
        stderr: theirs.stderr,
    };
    let child = children::start(|| spawn::spawn(&prepared).map_err(StartError::Step))
        .map_err(|error| error.failure(&prepared, request))?;
    Ok((child, streams))
}

/// What the command has of its streams.
pub(super) struct Theirs {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Where a program may be: as execvp(3) looks for it.
fn programs(program: &[u8], variables: &Variables) -> Result<Vec<CString>, Failure> {
    if program.contains(&b'/') {
        return Ok(vec![string(program.to_vec())?]);
    }
    let path = variables
        .get(b"PATH".as_slice())
        .map_or(environment::SEARCH_PATH.as_bytes(), Vec::as_slice);
    strings(path.split(|byte| *byte == b':').map(|directory| {
        let directory = if directory.is_empty() {
            b".".as_slice()
        } else {
            directory
        };
        [directory, b"/", program].concat()
    }))
}

fn strings(strings: impl Iterator<Item = Vec<u8>>) -> Result<Vec<CString>, Failure> {
    strings.map(string).collect()
}

fn string(bytes: Vec<u8>) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| {
        let text = "an argument, variable or path has a zero byte in it";
        Failure::new(FailureKind::Invalid, text)
    })
}

enum StartError {
    Step((Step, io::Error)),
    System(io::Error),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl StartError {
    fn failure(&self, prepared: &Prepared, request: &ExecRequest) -> Failure {
        let program = request
            .arguments
            .first()
            .map(|one| one.display().to_string());
        let program = program.unwrap_or_default();
        let (step, error) = match self {
            Self::System(error) => return Failure::system(error, "cannot start a process"),
            Self::Step((step, error)) => (*step, error),
        };
        match step {
            Step::Start => Failure::system(error, "cannot start a process"),
            Step::Session => Failure::system(error, "cannot make a session"),
            Step::Terminal => Failure::system(error, "cannot make the terminal the command's"),
            Step::Streams => Failure::system(error, "cannot hand the streams over"),
            Step::User => Failure::system(error, format!("cannot become user {}", prepared.uid)),
            Step::Directory => {
                let directory = prepared.directory.to_string_lossy();
                let context = format!("cannot enter the directory {directory}");
                Failure::of(FailureKind::WorkingDirectory, error, context)
            }
            Step::Execute => execution_failure(error, program, prepared),
        }
    }
}

fn execution_failure(error: &io::Error, program: String, prepared: &Prepared) -> Failure {
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => {
            // A script whose interpreter is missing is there.
            let is_there =
                |path: &CString| rustix::fs::access(path, rustix::fs::Access::EXISTS).is_ok();
            if program.contains('/') && prepared.programs.iter().any(is_there) {
                let context = format!("{program}: its interpreter is missing");
                return Failure::of(FailureKind::NotExecutable, error, context);
            }
            FailureKind::CommandNotFound
        }
        Some(libc::E2BIG) => FailureKind::ArgumentsTooLong,
        Some(libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::EIO) => {
            FailureKind::System
        }
        _ => FailureKind::NotExecutable,
    };
    Failure::of(kind, error, program)
}
