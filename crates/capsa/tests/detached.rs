//! Sandboxes that outlive whoever made them.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use capsa::network::{Forward, ForwardInfo, Interface, Network, Policy};
use capsa::test_utils::{LIMIT, backend, isolation};
use capsa::{
    Capsa, CommandEnd, Error, ExitStatus, Sandbox, SandboxBuilder, SandboxError, SandboxState,
    VmExit,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A name that no other test process has.
fn name(of: &str) -> String {
    format!("test-{}-{of}", std::process::id())
}

async fn builder(name: &str) -> SandboxBuilder {
    Capsa::sandbox()
        .backend(backend().await.backend)
        .isolation(isolation())
        .memory_mib(256)
        .name(name)
        .detachable()
}

async fn state(name: &str) -> Option<SandboxState> {
    let all = Sandbox::list().await.unwrap();
    let found = all.into_iter().find(|info| info.name == name);
    found.map(|info| info.state)
}

#[tokio::test]
async fn detached_sandbox_is_found_used_stopped_and_removed() {
    let name = name("life");
    builder(&name)
        .await
        .create()
        .await
        .unwrap()
        .detach()
        .await
        .unwrap();

    let sandbox = Sandbox::attach(&name).await.unwrap();
    let output = sandbox.exec(["echo", "here"]).await.unwrap();
    let taken = builder(&name).await.create().await.unwrap_err();
    drop(sandbox);
    assert_eq!(output.stdout, b"here\n");
    assert!(taken.to_string().contains("name"), "{taken}");
    assert_eq!(state(&name).await, Some(SandboxState::Running));
    assert!(Sandbox::remove(&name).await.is_err());

    let again = Sandbox::attach(&name).await.unwrap();
    let report = again.stop(LIMIT).await.unwrap();
    assert_eq!(report.exit, VmExit::PoweredOff);
    Sandbox::wait_until_gone(&name).await.unwrap();
    assert!(matches!(
        state(&name).await,
        Some(SandboxState::Ended {
            exit: VmExit::PoweredOff,
            ..
        })
    ));
    let ended = Sandbox::attach(&name).await.unwrap_err();
    assert!(
        matches!(ended, SandboxError::Vm(Error::Ended(_))),
        "{ended}"
    );

    Sandbox::remove(&name).await.unwrap();
    assert_eq!(state(&name).await, None);
}

#[tokio::test]
async fn network_of_a_detached_sandbox_is_steered_through_its_keeper() {
    // Arrange
    let name = name("network");
    let interface = Interface::user_nat().forward(Forward::tcp(0, 80));
    let builder = builder(&name).await.network(interface);
    builder.create().await.unwrap().detach().await.unwrap();
    let sandbox = Sandbox::attach(&name).await.unwrap();
    let script = "mkdir /tmp/www && echo here > /tmp/www/index.html && httpd -p 80 -h /tmp/www";
    let served = sandbox.shell(script).await.unwrap();
    assert!(served.status.success(), "{served:?}");

    // Act
    let network = sandbox.network().await.unwrap().unwrap();
    let first = network.forwards().await.unwrap().remove(0);
    let second = network.forward(Forward::tcp(0, 80)).await.unwrap();
    let answers = [get(&first).await, get(&second).await];
    network.remove_forward(first.id).await.unwrap();
    let closed = TcpStream::connect(first.bound.unwrap()).await;
    let address = sandbox.shell("ip addr show eth0").await.unwrap();
    network.set_policy(Policy::deny_all()).await.unwrap();
    let denied = sandbox.shell("ping -c 1 -W 60 192.0.2.1").await.unwrap();
    let counted = network.info().await.unwrap().counters.denied;
    sandbox.kill().await.unwrap();
    Sandbox::wait_until_gone(&name).await.unwrap();
    Sandbox::remove(&name).await.unwrap();

    // Assert
    assert_eq!(answers.map(|answer| answer.contains("here")), [true, true]);
    assert!(closed.is_err());
    let address = String::from_utf8_lossy(&address.stdout).into_owned();
    let expected = network.addresses().ipv4.unwrap().to_string();
    assert!(address.contains(&expected), "{address}");
    assert!(!denied.status.success(), "{denied:?}");
    assert!(counted > 0);
    assert!(network.forwards().await.is_err());
    assert!(TcpStream::connect(second.bound.unwrap()).await.is_err());
}

#[tokio::test]
async fn network_that_ends_with_its_maker_is_refused_for_a_detachable_sandbox() {
    let network = Network::builder("lab").create().await.unwrap();
    let builder = builder(&name("refused")).await;

    let error = builder.network(network.interface()).create().await;

    let error = error.unwrap_err().to_string();
    assert!(error.contains("lab") && error.contains("keep()"), "{error}");
}

async fn get(forward: &ForwardInfo) -> String {
    let mut stream = TcpStream::connect(forward.bound.unwrap()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn detachable_sandbox_that_is_dropped_ends_and_leaves_nothing() {
    let name = name("dropped");
    let sandbox = builder(&name).await.create().await.unwrap();
    assert_eq!(state(&name).await, Some(SandboxState::Running));

    drop(sandbox);
    Sandbox::wait_until_gone(&name).await.unwrap();

    assert_eq!(state(&name).await, None);
}

#[tokio::test]
async fn command_of_a_detached_sandbox_is_logged_and_its_end_is_the_sandboxes() {
    let name = name("command");
    let script = [
        "sh",
        "-c",
        "echo one; echo two >&2; read line < /dev/null; exit 5",
    ];
    let sandbox = builder(&name).await.command(script).create().await.unwrap();
    sandbox.detach().await.unwrap();

    let mut followed = String::new();
    let mut log = Sandbox::output(&name, true).await.unwrap();
    log.read_to_string(&mut followed).await.unwrap();
    let (exit, end) = Sandbox::wait_for_command(&name).await.unwrap();
    Sandbox::wait_until_gone(&name).await.unwrap();
    let mut kept = String::new();
    let mut log = Sandbox::output(&name, false).await.unwrap();
    log.read_to_string(&mut kept).await.unwrap();
    Sandbox::remove(&name).await.unwrap();

    assert!(
        followed.contains("one\n") && followed.contains("two\n"),
        "{followed}"
    );
    assert_eq!(kept, followed);
    assert_eq!(end, Some(CommandEnd::Exited(ExitStatus::Code(5))));
    assert_eq!(exit, VmExit::PoweredOff);
}

#[tokio::test]
async fn keeper_that_is_killed_is_shown_as_crashed() {
    let name = name("crashed");
    let sandbox = builder(&name).await.create().await.unwrap();
    let keeper = Sandbox::find(&name).await.unwrap().process;
    sandbox.detach().await.unwrap();

    let keeper = Pid::from_raw(keeper.cast_signed()).unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
    Sandbox::wait_until_gone(&name).await.unwrap();
    let crashed = state(&name).await;
    let lost = Sandbox::attach(&name).await.unwrap_err();
    Sandbox::remove(&name).await.unwrap();

    assert_eq!(crashed, Some(SandboxState::Crashed));
    assert!(lost.to_string().contains("is gone"), "{lost}");
    assert_eq!(state(&name).await, None);
}

#[tokio::test]
async fn start_that_fails_is_told_with_its_kind_and_leaves_nothing() {
    let name = name("failed");

    let error = builder(&name).await.cpus(0).create().await.unwrap_err();

    assert!(
        matches!(error, SandboxError::Vm(Error::InvalidSetting { .. })),
        "{error}"
    );
    Sandbox::wait_until_gone(&name).await.unwrap();
    assert_eq!(state(&name).await, None);
}

#[tokio::test]
async fn time_of_a_detached_sandbox_is_kept() {
    let name = name("timed");
    let sandbox = builder(&name)
        .await
        .timeout(Duration::from_secs(20))
        .command(["sleep", "1000"])
        .create()
        .await
        .unwrap();
    sandbox.detach().await.unwrap();

    let (_, end) = Sandbox::wait_for_command(&name).await.unwrap();
    Sandbox::wait_until_gone(&name).await.unwrap();
    Sandbox::remove(&name).await.unwrap();

    assert_eq!(end, Some(CommandEnd::TimedOut));
}
