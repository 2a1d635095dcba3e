//! Networks that outlive whoever made them, without guests.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use capsa::network::{Network, NetworkEvent, NetworkState};
use capsa::{Error, NetworkErrorKind};
use rustix::process::{Pid, Signal, kill_process};
use tokio_stream::StreamExt;

/// A name that no other test process has.
fn name(of: &str) -> String {
    format!("test-{}-{of}", std::process::id())
}

async fn keep(name: &str) -> Network {
    Network::builder(name).keep().create().await.unwrap()
}

fn kind(error: &Error) -> Option<NetworkErrorKind> {
    match error {
        Error::Network { kind, .. } => Some(*kind),
        _ => None,
    }
}

#[tokio::test]
async fn network_is_found_by_its_name_with_its_settings_until_it_is_removed() {
    let name = name("life");
    let builder = Network::builder(&name).without_peers().mtu(1300).keep();
    let network = builder.create().await.unwrap();
    let process = network.process_id();
    drop(network);

    let info = Network::find(&name).await.unwrap();
    let again = Network::builder(&name).keep().create().await.unwrap_err();
    let attached = Network::attach(&name).await.unwrap();
    attached.shutdown().await;
    let all = Network::list().await.unwrap();
    Network::remove(&name).await.unwrap();
    let gone = Network::attach(&name).await.unwrap_err();

    assert_eq!(info.state, NetworkState::Running);
    assert_eq!((info.mtu, info.peers, info.outside), (1300, false, true));
    assert_eq!(Some(info.process), process);
    assert!(again.to_string().contains("runs"), "{again}");
    assert!(all.iter().any(|info| info.name == name));
    assert_eq!(kind(&gone), Some(NetworkErrorKind::NotFound));
    assert!(
        gone.to_string()
            .contains(&format!("capsa network create {name}"))
    );
    assert!(!info.directory.exists());
}

#[tokio::test]
async fn network_whose_process_is_killed_is_told_as_lost_and_shown_as_crashed() {
    let name = name("crashed");
    let network = keep(&name).await;
    let mut events = network.events();
    let process = network.process_id().unwrap().cast_signed();

    kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
    let told = events.next().await;
    Network::wait_until_gone(&name).await.unwrap();
    let info = Network::find(&name).await.unwrap();
    let asked = network.guests().await.unwrap_err();
    let attached = Network::attach(&name).await.unwrap_err();
    let again = Network::builder(&name).keep().create().await.unwrap_err();
    Network::remove(&name).await.unwrap();

    assert!(matches!(told, Some(NetworkEvent::Lost { .. })), "{told:?}");
    assert_eq!(info.state, NetworkState::Crashed);
    assert_eq!(kind(&asked), Some(NetworkErrorKind::Ended));
    assert_eq!(kind(&attached), Some(NetworkErrorKind::Ended));
    assert!(again.to_string().contains("crashed"), "{again}");
    assert!(Network::find(&name).await.is_err());
}

#[tokio::test]
async fn settings_that_cannot_be_are_told_with_their_kind_and_leave_nothing() {
    let name = name("failed");

    let error = Network::builder(&name).mtu(100).keep().create().await;

    assert_eq!(kind(&error.unwrap_err()), Some(NetworkErrorKind::Setting));
    assert!(Network::find(&name).await.is_err());
}
