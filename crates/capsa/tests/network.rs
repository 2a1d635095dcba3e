//! Guests on networks: addresses, names, servers of the host, ports, policies, other guests, and a
//! network that is lost.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use capsa::network::{
    Action, Forward, Interface, LinkConditions, Network, NetworkEvent, OnLoss, Policy, Reason, Rule,
};
use capsa::test_utils::{LIMIT, Shell, vm};
use capsa::{Error, NetworkErrorKind, VmStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::StreamExt;

/// A web server on the host's loopback addresses that answers everything with one body.
struct Server {
    port: u16,
    /// The first line of each request that arrived.
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(body: &'static str) -> Self {
        let ipv4 = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = ipv4.local_addr().unwrap().port();
        let ipv6 = TcpListener::bind(("::1", port)).await.unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        for listener in [ipv4, ipv6] {
            let seen = log.clone();
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(answer(client, body, seen.clone()));
                }
            });
        }
        Self { port, log }
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

async fn answer(mut client: TcpStream, body: &'static str, seen: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match client.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    seen.lock().unwrap().push(line);
    let length = body.len();
    let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    let _gone = client.write_all(answer.as_bytes()).await;
}

async fn with(interface: Interface) -> Shell {
    Shell::start(vm().await.network(interface)).await
}

/// Everything public, and this port of the host's loopback address.
fn host_port(port: u16) -> Policy {
    let mut policy = Policy::allow_all();
    policy
        .rules
        .push(Rule::allow(&format!("tcp:host:{port}")).unwrap());
    policy
}

async fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A web server in the guest, which answers with `body`.
async fn serve_in(shell: &mut Shell, body: &str) {
    shell
        .run(&format!(
            "mkdir -p /tmp/www && echo {body} > /tmp/www/index.html && httpd -p 80 -h /tmp/www"
        ))
        .await;
}

#[tokio::test]
async fn network_guest_has_the_addresses_and_servers_that_it_was_given() {
    let mut shell = with(Interface::user_nat().name("box")).await;
    let network = shell.vm.network().unwrap().clone();
    let addresses = network.addresses();

    let link = shell.run("ip addr show eth0").await;
    let routes = shell.run("ip route; ip -6 route").await;
    let resolver = shell.run("cat /etc/resolv.conf; hostname").await;

    assert!(link.contains("inet 10.0.2.3/24"), "{link}");
    assert!(link.contains(&addresses.mac.to_string()), "{link}");
    assert!(
        link.contains(&addresses.ipv6.unwrap().to_string()),
        "{link}"
    );
    assert!(link.contains("mtu 1500"), "{link}");
    assert!(routes.contains("default via 10.0.2.1"), "{routes}");
    assert!(resolver.contains("nameserver 10.0.2.1"), "{resolver}");
    assert!(resolver.ends_with("box"), "{resolver}");
}

#[tokio::test]
async fn network_guest_reaches_what_is_allowed_at_the_time_and_nothing_else_of_the_host() {
    let allowed = Server::start("allowed").await;
    let denied = Server::start("denied").await;
    let mut shell = with(Interface::user_nat().policy(host_port(allowed.port()))).await;
    let mut decisions = shell.vm.network().unwrap().policy_events().await.unwrap();

    let port = allowed.port();
    let body = shell
        .run(&format!("wget -qO- http://host.capsa.internal:{port}/a"))
        .await;
    let port = denied.port();
    let refused = shell
        .run(&format!("! wget -qO- http://10.0.2.2:{port}/b"))
        .await;

    assert_eq!(body, "allowed");
    assert_eq!(allowed.log(), ["GET /a HTTP/1.1"]);
    assert!(refused.contains("refused"), "{refused}");
    assert!(denied.log().is_empty());
    let denial = tokio::time::timeout(LIMIT, async {
        loop {
            let event = decisions.next().await.unwrap();
            if event.action == Action::Deny {
                return event;
            }
        }
    });
    assert!(!matches!(denial.await.unwrap().reason, Reason::Rule { .. }));

    let network = shell.vm.network().unwrap().clone();
    network.set_policy(host_port(denied.port())).await.unwrap();
    let port = denied.port();
    let body = shell
        .run(&format!("wget -qO- http://10.0.2.2:{port}/c"))
        .await;
    assert_eq!(body, "denied");
    assert_eq!(denied.log(), ["GET /c HTTP/1.1"]);
}

#[tokio::test]
async fn network_forward_leads_to_the_guest_until_it_is_closed() {
    let mut shell = with(Interface::user_nat().forward(Forward::tcp(0, 80))).await;
    let network = shell.vm.network().unwrap().clone();
    serve_in(&mut shell, "from-the-guest").await;
    let first = network.forwards().await.unwrap().remove(0);

    let answer = get(first.bound.unwrap()).await.unwrap();
    let second = network.forward(Forward::tcp(0, 80)).await.unwrap();
    let again = get(second.bound.unwrap()).await.unwrap();
    network.remove_forward(first.id).await.unwrap();
    let closed = TcpStream::connect(first.bound.unwrap()).await;

    assert!(answer.contains("from-the-guest"), "{answer}");
    assert!(again.contains("from-the-guest"), "{again}");
    assert!(closed.is_err());
    shell.vm.kill().await.unwrap();
    assert!(TcpStream::connect(second.bound.unwrap()).await.is_err());
}

#[tokio::test]
async fn network_forward_of_a_port_in_use_is_refused_before_the_guest_runs() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let interface = Interface::user_nat().forward(Forward::tcp(port, 80));
    let handle = vm().await.network(interface).build().await.unwrap();

    let error = handle.start().await.unwrap_err();

    assert!(
        matches!(
            &error,
            Error::Network {
                kind: NetworkErrorKind::PortInUse,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains(&port.to_string()), "{error}");
    assert!(handle.process_id().is_none());
}

#[tokio::test]
async fn network_settings_that_cannot_be_are_refused_by_name() {
    for (interface, part) in [
        (
            Interface::user_nat().forward(Forward::tcp(8080, 0)),
            "port 0",
        ),
        (Interface::user_nat().mtu(100), "mtu"),
        (Interface::user_nat().name("host"), "host"),
        (
            Interface::user_nat().ipv4("192.168.7.7".parse().unwrap()),
            "192.168.7.7",
        ),
    ] {
        let error = vm().await.network(interface).build().await.unwrap_err();

        assert!(
            matches!(
                &error,
                Error::Network {
                    kind: NetworkErrorKind::Setting,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn network_rule_that_no_flow_reaches_is_warned_of_by_name() {
    let mut policy = Policy::deny_all();
    policy.rules = vec![
        Rule::allow("10.0.0.0/8").unwrap(),
        Rule::deny("10.1.0.0/16").unwrap().named("the second"),
    ];
    let interface = Interface::user_nat().policy(policy);

    let handle = vm().await.network(interface).build().await.unwrap();

    let warnings = handle.warnings();
    assert!(
        warnings
            .iter()
            .any(|warning| warning.0.contains("the second")),
        "{warnings:?}"
    );
}

#[tokio::test]
async fn network_guests_reach_one_another_by_name_and_nothing_outside() {
    let server = Server::start("outside").await;
    let network = Network::builder("pair")
        .without_outside()
        .create()
        .await
        .unwrap();
    let interface = |name: &str| network.interface().name(name);
    let mut alice = with(interface("alice")).await;
    let mut bob = with(interface("bob")).await;
    serve_in(&mut bob, "i-am-bob").await;

    let body = alice.run("wget -qO- http://bob/").await;
    let full = alice.run("wget -qO- http://bob.capsa.internal/").await;
    let back = bob.run("ping -c 1 alice").await;
    let port = server.port();
    let outside = format!("! wget -qO- http://10.0.2.2:{port}/");
    alice.run(&outside).await;

    assert_eq!((body.as_str(), full.as_str()), ("i-am-bob", "i-am-bob"));
    assert!(back.contains("1 packets received"), "{back}");
    assert!(server.log().is_empty());
    assert_eq!(network.guests().await.unwrap().len(), 2);
    alice.vm.kill().await.unwrap();
    assert_eq!(network.guests().await.unwrap().len(), 1);
}

#[cfg(target_os = "linux")] // where there are networks that are kept
#[tokio::test]
async fn network_that_is_kept_is_shared_by_all_who_attach_it_until_it_is_removed() {
    // Arrange
    let name = format!("test-{}-kept", std::process::id());
    let builder = Network::builder(&name).without_outside().keep();
    drop(builder.create().await.unwrap());
    let ours = Network::attach(&name).await.unwrap();
    let theirs = Network::attach(&name).await.unwrap();
    let mut alice = with(ours.interface().name("alice")).await;
    let interface = theirs.interface().name("bob");
    let mut bob = with(interface.forward(Forward::tcp(0, 80))).await;
    serve_in(&mut bob, "i-am-bob").await;

    // Act
    let body = alice.run("wget -qO- http://bob/").await;
    let forward = bob
        .vm
        .network()
        .unwrap()
        .forwards()
        .await
        .unwrap()
        .remove(0);
    let answer = get(forward.bound.unwrap()).await.unwrap();
    let in_use = Network::remove(&name).await.unwrap_err();
    bob.vm.kill().await.unwrap();
    let left = ours.guests().await.unwrap();
    let mut events = ours.events();
    Network::remove_with_guests(&name).await.unwrap();
    wait_for(&mut events, |event| {
        matches!(event, NetworkEvent::Lost { .. })
    })
    .await;
    let alive = alice.run("echo alive").await;
    let gone = Network::find(&name).await.unwrap_err();

    // Assert
    assert_eq!((body.as_str(), alive.as_str()), ("i-am-bob", "alive"));
    assert!(answer.contains("i-am-bob"), "{answer}");
    assert!(in_use.to_string().contains("alice, bob"), "{in_use}");
    assert_eq!(left.len(), 1);
    assert!(
        matches!(
            gone,
            Error::Network {
                kind: NetworkErrorKind::NotFound,
                ..
            }
        ),
        "{gone}"
    );
}

#[tokio::test]
async fn network_that_is_killed_is_told_and_the_guest_lives_on() {
    let mut shell = with(Interface::user_nat()).await;
    let network = shell.vm.network().unwrap().clone();
    let mut events = network.network().events();

    kill(network.network().process_id().unwrap());
    let lost = wait_for(&mut events, |event| {
        matches!(event, NetworkEvent::Lost { .. })
    })
    .await;
    let alive = shell.run("echo alive").await;
    shell.run("! ping -c 1 -W 2 10.0.2.1").await;

    assert!(
        matches!(&lost, NetworkEvent::Lost { reason } if reason.contains("SIGKILL")),
        "{lost:?}"
    );
    assert_eq!(alive, "alive");
    assert_eq!(shell.vm.status(), VmStatus::Running);
    assert!(matches!(
        network.info().await,
        Err(Error::Network {
            kind: NetworkErrorKind::Ended,
            ..
        })
    ));
}

#[tokio::test]
async fn network_that_is_restarted_has_its_guest_policy_and_forwards() {
    let server = Server::start("again").await;
    let port = server.port();
    let mut shell = with(
        Interface::user_nat()
            .forward(Forward::tcp(0, 80))
            .on_loss(OnLoss::Restart),
    )
    .await;
    let network = shell.vm.network().unwrap().clone();
    network.set_policy(host_port(port)).await.unwrap();
    serve_in(&mut shell, "back").await;
    let mut events = network.network().events();

    kill(network.network().process_id().unwrap());
    wait_for(&mut events, |event| *event == NetworkEvent::Restored).await;
    let body = shell
        .run(&format!("wget -qO- http://10.0.2.2:{port}/"))
        .await;
    let bound = network.forwards().await.unwrap()[0].bound.unwrap();
    let answer = get(bound).await.unwrap();

    assert_eq!(body, "again");
    assert!(answer.contains("back"), "{answer}");
}

#[tokio::test]
async fn network_carries_a_large_file_both_ways_unharmed() {
    const MIB: usize = 8;
    let data: Vec<u8> = (0..MIB << 20)
        .map(|at| (at * 7 + (at >> 8)) as u8)
        .collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = data.clone();
    let echo = tokio::spawn(async move {
        let (mut down, _) = listener.accept().await.unwrap();
        down.write_all(&sent).await.unwrap();
        down.shutdown().await.unwrap();
        let (mut up, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        up.read_to_end(&mut got).await.unwrap();
        got
    });
    let mut shell = with(Interface::user_nat().policy(host_port(port))).await;

    shell
        .run(&format!("nc 10.0.2.2 {port} < /dev/null > /tmp/data"))
        .await;
    let size = shell.run("wc -c < /tmp/data").await;
    shell.run(&format!("nc 10.0.2.2 {port} < /tmp/data")).await;
    let got = tokio::time::timeout(LIMIT, echo).await.unwrap().unwrap();

    assert_eq!(size.trim(), (MIB << 20).to_string());
    assert!(got == data);
    let info = shell.vm.network().unwrap().info().await.unwrap();
    assert!(info.counters.bytes_to > (MIB << 20) as u64);
    assert!(info.counters.bytes_from > (MIB << 20) as u64);
    assert_eq!(info.counters.malformed, 0);
}

#[tokio::test]
async fn network_link_that_is_cut_carries_nothing_and_its_capture_tells_the_rest() {
    let mut shell = with(Interface::user_nat()).await;
    let network = shell.vm.network().unwrap().clone();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("frames.pcapng");

    network.start_capture(&file, 1 << 20).await.unwrap();
    shell.run("ping -c 1 -W 60 10.0.2.1").await;
    network.stop_capture().await.unwrap();
    let cut = LinkConditions {
        partitioned: true,
        ..LinkConditions::ideal()
    };
    network.set_link(cut).await.unwrap();
    shell.run("! ping -c 1 -W 2 10.0.2.1").await;
    network.set_link(LinkConditions::ideal()).await.unwrap();
    shell.run("ping -c 1 -W 60 10.0.2.1").await;

    let bytes = std::fs::read(&file).unwrap();
    // Source and destination of an IPv4 packet.
    let addresses = [10, 0, 2, 3, 10, 0, 2, 1];
    assert!(bytes.windows(8).any(|window| window == addresses));
}

fn kill(process: u32) {
    let process = rustix::process::Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
}

async fn wait_for(
    events: &mut (impl StreamExt<Item = NetworkEvent> + Unpin),
    wanted: impl Fn(&NetworkEvent) -> bool,
) -> NetworkEvent {
    let found = async {
        loop {
            let event = events.next().await.expect("a network that lives");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(LIMIT.min(Duration::from_secs(120)), found)
        .await
        .expect("the event")
}
