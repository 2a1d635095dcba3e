//! Networks in processes of their own. This test program is what is started again.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::net::TcpStream;

use capsa_net::{ControlError, Forward, GuestConfig, NetworkConfig};
use capsa_network::{NetworkProcess, Place, StartError};

fn guest(name: &str) -> GuestConfig {
    GuestConfig::new(name.parse().unwrap())
}

#[tokio::test]
async fn network_process_serves_its_client_until_it_is_dropped() {
    let network = NetworkProcess::start(&NetworkConfig::new("n"), Place::OwnProcess)
        .await
        .unwrap();
    let id = network.process_id().unwrap();
    let mut config = guest("a");
    config.forwards.push(Forward::tcp(0, 80));
    let addresses = network.client().reserve_guest(config).await.unwrap();
    let forwards = network.client().forwards().await.unwrap();
    let bound = forwards[0].bound.unwrap();
    let reached = TcpStream::connect(bound).is_ok();
    let end = network.watch_end();

    drop(network);
    let end = end.await;

    assert_ne!(id, std::process::id());
    assert_eq!(addresses.ipv4.unwrap().to_string(), "10.0.2.3");
    assert!(reached);
    assert!(end.reason.contains("killed"), "{end:?}");
    assert!(TcpStream::connect(bound).is_err());
}

#[tokio::test]
async fn network_process_that_is_killed_is_told_with_its_end() {
    let network = NetworkProcess::start(&NetworkConfig::new("n"), Place::OwnProcess)
        .await
        .unwrap();
    let id = i32::try_from(network.process_id().unwrap()).unwrap();

    rustix::process::kill_process(
        rustix::process::Pid::from_raw(id).unwrap(),
        rustix::process::Signal::SEGV,
    )
    .unwrap();
    let end = network.ended().await;

    assert!(end.reason.contains("11"), "{end:?}");
    assert!(matches!(
        network.client().ping().await,
        Err(ControlError::Ended)
    ));
}

#[tokio::test]
async fn network_on_a_thread_ends_with_its_handle() {
    let network = NetworkProcess::start(&NetworkConfig::new("n"), Place::CallersProcess)
        .await
        .unwrap();
    let end = network.watch_end();

    drop(network);

    assert_eq!(end.await.last_words, "");
}

#[tokio::test]
async fn network_with_a_wrong_configuration_is_refused_before_it_starts() {
    let config = NetworkConfig {
        mtu: 100,
        ..NetworkConfig::new("n")
    };

    let refused = NetworkProcess::start(&config, Place::OwnProcess).await;

    assert!(matches!(refused, Err(StartError::Config(_))));
}

#[tokio::test]
async fn two_networks_cannot_forward_one_port() {
    let first = NetworkProcess::start(&NetworkConfig::new("a"), Place::OwnProcess)
        .await
        .unwrap();
    let second = NetworkProcess::start(&NetworkConfig::new("b"), Place::OwnProcess)
        .await
        .unwrap();
    let mut config = guest("a");
    config.forwards.push(Forward::tcp(0, 80));
    first.client().reserve_guest(config).await.unwrap();
    let bound = first.client().forwards().await.unwrap()[0].bound.unwrap();

    let mut config = guest("b");
    config.forwards.push(Forward::tcp(bound.port(), 80));
    let refused = second.client().reserve_guest(config).await;

    assert!(
        matches!(
            &refused,
            Err(ControlError::Refused(capsa_net::Refusal::InUse(_)))
        ),
        "{refused:?}"
    );
}
