//! What an agent does with hosts of other versions, and with nonsense.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io;

use capsa_agent_client::{AgentClient, AgentError, Command, FailureKind};
use capsa_core::ByteStream;
use support::{Agent, sh, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[tokio::test]
async fn agent_tells_what_it_is() {
    let agent = Agent::start().await;
    let info = within(agent.client.info()).await.unwrap();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert!(!info.is_init);
    assert_eq!(agent.control.info(), &info);
}

#[tokio::test]
async fn host_of_another_version_learns_the_agents() {
    let agent = Agent::start().await;
    let mut stream = UnixStream::connect(agent.socket()).await.unwrap();
    stream.write_all(b"capsaagt\x09\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"capsaagt\x01\0\0\0");
}

/// A client of an agent that answers with `answer` to everything.
fn client_of(answer: &'static [u8]) -> AgentClient {
    AgentClient::new(move || async move {
        let (ours, mut theirs) = UnixStream::pair()?;
        tokio::spawn(async move {
            let _ = theirs.write_all(answer).await;
            let _ = tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await;
        });
        io::Result::Ok(Box::new(ours) as Box<dyn ByteStream>)
    })
}

#[tokio::test]
async fn agent_of_another_version_is_an_error_with_both_versions() {
    let client = client_of(b"capsaagt\x02\0\0\0");
    let error = within(client.output(Command::new("true")))
        .await
        .unwrap_err();
    assert!(matches!(error, AgentError::Protocol(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("version 1") && text.contains("version 2"),
        "{text}"
    );
}

#[tokio::test]
async fn something_else_than_an_agent_is_an_error() {
    let client = client_of(b"SSH-2.0-OpenSSH_9.2p1\r\n");
    let error = within(client.info()).await.unwrap_err();
    assert!(error.to_string().contains("not a capsa agent"), "{error}");
}

#[tokio::test]
async fn agent_that_says_nothing_can_be_left() {
    let client = client_of(b"");
    let asked = client.info();
    let limit = std::time::Duration::from_millis(50);
    assert!(tokio::time::timeout(limit, asked).await.is_err());
}

#[tokio::test]
async fn nonsense_is_refused_and_the_agent_lives_on() {
    let agent = Agent::start().await;
    for nonsense in [
        b"capsaagt\x01\0\0\0\x01\x03\0\0\0\xff\xff\xff".as_slice(),
        b"capsaagt\x01\0\0\0\x02\0\0\0\0",
        b"capsaagt\x01\0\0\0\x01\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = UnixStream::connect(agent.socket()).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
        assert!(answer.starts_with(b"capsaagt"), "{answer:?}");
    }
    assert!(agent.output(sh("true")).await.status.success());
}

#[tokio::test]
async fn port_of_the_guest_is_probed_and_connected_to() {
    let agent = Agent::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(within(agent.client.probe_port(port)).await.unwrap());
    let (_probe, _) = within(listener.accept()).await.unwrap();

    let mut stream = within(agent.client.connect_port(port)).await.unwrap();
    let (mut program, _) = within(listener.accept()).await.unwrap();
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    within(program.read_to_end(&mut got)).await.unwrap();
    program.write_all(b"answer").await.unwrap();
    drop(program);
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();

    assert_eq!(
        (got.as_slice(), answer.as_slice()),
        (b"question".as_slice(), b"answer".as_slice())
    );
    drop(listener);
    assert!(!within(agent.client.probe_port(port)).await.unwrap());
    let error = within(agent.client.connect_port(port)).await.err().unwrap();
    assert_eq!(error.failure_kind(), Some(FailureKind::System));
}
