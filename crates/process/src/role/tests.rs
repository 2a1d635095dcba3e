use rustix::net::{AddressFamily, SocketFlags, socketpair};

use super::*;
use crate::{ControlSocket, ExitReason, receive, send};

crate::role! {
    static ECHO: "test-echo", begins b"echo\0", runs echo;
}

/// Sends every message back; one that says so makes it fail or panic.
fn echo(socket: OwnedFd) -> Result<(), Box<dyn Error>> {
    let mut buffer = Vec::new();
    while let Some(descriptors) = receive(&socket, &mut buffer)? {
        match buffer.as_slice() {
            b"echo\0fail" => return Err("as it was asked to".into()),
            b"echo\0panic" => panic!("as it was asked to"),
            b"echo\0thread" => {
                end_process_on_panic();
                let thread = std::thread::spawn(|| panic!("as the thread was asked to"));
                // The socket stays open: nothing else ends this process.
                while !thread.is_finished() {
                    std::thread::yield_now();
                }
            }
            b"echo\0warn" => tracing::warn!(number = 7, "something is odd"),
            _ => {}
        }
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        send(&socket, &buffer, &descriptors)?;
    }
    Ok(())
}

fn this_executable() -> PathBuf {
    OWN_EXECUTABLE.into()
}

/// Starts the role with `first` waiting.
async fn started(first: &[u8]) -> (ControlSocket, Supervised) {
    let (ours, theirs) = ControlSocket::pair().unwrap();
    ours.send(first, &[]).await.unwrap();
    let process = ECHO.start(&this_executable(), theirs).unwrap();
    (ours, process)
}

#[tokio::test]
async fn a_process_with_a_role_answers_on_its_control_socket_and_ends_with_it() {
    // Arrange
    let (socket, process) = started(b"echo\0hello").await;
    let mut buffer = Vec::new();

    // Act
    let null = std::fs::File::open("/dev/null").unwrap();
    let first = socket.receive(&mut buffer).await.unwrap();
    let first_bytes = buffer.clone();
    socket.send(b"second", &[null.as_fd()]).await.unwrap();
    let second = socket.receive(&mut buffer).await.unwrap();
    drop(socket);
    let end = process.ended().await;

    // Assert
    assert_eq!(first.map(|descriptors| descriptors.len()), Some(0));
    assert_eq!(first_bytes, b"echo\0hello");
    assert_eq!(second.map(|descriptors| descriptors.len()), Some(1));
    assert_eq!(end.reason, ExitReason::Status(0));
    assert_eq!(end.last_words, "");
}

#[tokio::test]
async fn a_role_that_fails_says_why_with_its_last_words() {
    for (message, said) in [
        (&b"echo\0fail"[..], "as it was asked to"),
        (b"echo\0panic", "as it was asked to"),
        (b"echo\0thread", "as the thread was asked to"),
    ] {
        let (_socket, process) = started(message).await;
        let end = process.ended().await;
        assert_eq!(end.reason, ExitReason::Status(FAILED));
        assert!(end.last_words.contains(said), "{}", end.last_words);
    }
}

#[tokio::test]
async fn a_warning_of_a_role_is_among_its_last_words() {
    let (socket, process) = started(b"echo\0warn").await;
    drop(socket);
    let end = process.ended().await;
    assert!(
        end.last_words.contains("something is odd number=7"),
        "{}",
        end.last_words
    );
}

/// What this test program does with its arguments is the sign that it was left alone.
fn lists_its_tests(input: std::process::Stdio) -> bool {
    let output = std::process::Command::new(this_executable())
        .arg("--list")
        .env("CAPSA_PROCESS_ROLE", "test-echo")
        .stdin(input)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).contains("goes_on_as_usual")
}

#[test]
fn a_program_with_the_variable_and_no_socket_goes_on_as_usual() {
    assert!(lists_its_tests(std::process::Stdio::null()));
}

#[test]
fn a_program_with_the_variable_and_another_message_goes_on_as_usual() {
    // Arrange: nothing, a message of somebody else, and one that is shorter than the beginning.
    for message in [&b""[..], b"other", b"ech"] {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        if !message.is_empty() {
            send(&ours, message, &[]).unwrap();
        }

        // Act, assert
        assert!(lists_its_tests(theirs.into()));
    }
}

#[tokio::test]
async fn an_executable_that_is_not_there_is_named_with_the_fix() {
    let (_ours, theirs) = ControlSocket::pair().unwrap();

    let error = ECHO
        .start(Path::new("/nowhere/at-all"), theirs)
        .unwrap_err();

    let text = error.to_string();
    assert!(text.contains("/nowhere/at-all"), "{text}");
    assert!(text.contains("CAPSA_MONITOR"), "{text}");
}
