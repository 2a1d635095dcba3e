//! Networks of detached sandboxes: a shared one, ports that are changed while they run.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use support::Capsa;

/// A server on the host's loopback address that says one thing to everybody.
fn server(word: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let _gone = client.and_then(|mut client| client.write_all(word.as_bytes()));
        }
    });
    port
}

/// A web server in a sandbox, which answers with `body`.
fn serve_in(capsa: &Capsa, name: &str, body: &str) {
    let script = format!(
        "mkdir -p /tmp/www && echo {body} > /tmp/www/index.html && httpd -p 80 -h /tmp/www"
    );
    capsa.text(&["exec", name, "--", "sh", "-c", &script]);
}

fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The addresses of what `capsa port` writes, with all else that stands in the lines.
fn ports(lines: &str) -> Vec<(SocketAddr, &str)> {
    lines
        .lines()
        .map(|line| {
            let (address, guest) = line.split_once(" -> ").unwrap();
            (address.parse().unwrap(), guest)
        })
        .collect()
}

#[test]
fn sandboxes_of_several_commands_share_a_network_and_nothing_more() {
    // Arrange
    let capsa = Capsa::new();
    let (allowed, denied) = (server("allowed"), server("denied"));
    let target = format!("host:{allowed}");
    capsa.text(&["network", "create", "lab"]);
    let run = |name, more: &[&str]| {
        let mut arguments = vec!["run", "-d", "--name", name, "--memory", "256M"];
        arguments.extend(["--net", "lab"]);
        arguments.extend(more);
        capsa.text(&arguments);
    };
    run("one", &[]);
    run("two", &["--allow", &target]);
    serve_in(&capsa, "one", "i-am-one");

    // Act
    let in_two = |script: &str| capsa.output(&["exec", "two", "--", "sh", "-c", script]);
    let body = in_two("wget -qO- http://one/");
    let host = in_two(&format!("nc 10.0.2.2 {allowed} < /dev/null"));
    let other = in_two(&format!("nc 10.0.2.2 {denied} < /dev/null"));
    let from_one = format!("nc 10.0.2.2 {allowed} < /dev/null");
    let from_one = capsa.output(&["exec", "one", "--", "sh", "-c", &from_one]);
    let listed = capsa.json(&["network", "ls", "--json"]);
    let inspected = capsa.json(&["inspect", "two"]);
    let in_use = capsa.refusal(&["network", "rm", "lab"]);

    // Assert
    assert_eq!(body.stdout, b"i-am-one\n", "{body:?}");
    assert_eq!(host.stdout, b"allowed", "{host:?}");
    assert!(
        !other.status.success() && other.stdout.is_empty(),
        "{other:?}"
    );
    // The policy is the other guest's.
    assert!(!from_one.status.success(), "{from_one:?}");
    let mut guests: Vec<_> = listed[0]["guests"].as_array().unwrap().clone();
    guests.sort_by_key(ToString::to_string);
    assert_eq!(guests, ["one", "two"]);
    assert_eq!(inspected["network"]["network"], "lab");
    assert_eq!(inspected["network"]["ipv4"], "10.0.2.4/24");
    assert!(
        in_use.contains("one, two") && in_use.contains("-f"),
        "{in_use}"
    );

    // A guest goes with its sandbox; the other one's network can be taken from it.
    capsa.text(&["rm", "-f", "one"]);
    let inspected = capsa.json(&["network", "inspect", "lab"]);
    let guests = inspected["guests"].as_array().unwrap();
    assert_eq!(guests.len(), 1, "{guests:?}");
    assert_eq!(guests[0]["name"], "two");
    capsa.text(&["network", "rm", "-f", "lab"]);
    assert_eq!(capsa.text(&["exec", "two", "echo", "alive"]), "alive\n");
    let inspected = capsa.json(&["inspect", "two"]);
    assert_eq!(inspected["network"]["forwards"], serde_json::Value::Null);
    let ended = capsa.refusal(&["port", "two"]);
    assert!(ended.contains("lab") && ended.contains("ended"), "{ended}");
    capsa.text(&["rm", "-f", "two"]);
    assert!(capsa.left().is_empty(), "{:?}", capsa.left());
}

#[test]
fn ports_of_a_sandbox_in_the_background_are_listed_added_and_removed() {
    // Arrange
    let capsa = Capsa::new();
    capsa.text(&[
        "run", "-d", "--name", "web", "--memory", "256M", "--net", "nat", "-p", "0:80",
    ]);
    serve_in(&capsa, "web", "from-the-guest");

    // Act
    let first = capsa.text(&["port", "web"]);
    let second = capsa.text(&["port", "web", "add", "0:80"]);
    let both = capsa.text(&["port", "web"]);
    let (first, second) = (ports(&first)[0], ports(&second)[0]);
    let answers = [get(first.0), get(second.0)];
    let taken = second.0.port().to_string();
    let in_use = capsa.refusal(&["port", "web", "add", &format!("{taken}:81")]);
    capsa.text(&["port", "web", "rm", &format!("{}:80", first.0.port())]);
    let left = capsa.text(&["port", "web"]);
    let missing = capsa.refusal(&["port", "web", "rm", "4711:80"]);
    let inspected = capsa.json(&["inspect", "web"]);

    // Assert
    assert_eq!((first.1, second.1), ("80/tcp", "80/tcp"));
    assert_ne!(first.0, second.0);
    assert_eq!(ports(&both), [first, second]);
    for answer in answers {
        assert!(answer.contains("from-the-guest"), "{answer}");
    }
    assert!(in_use.contains("choose another port"), "{in_use}");
    assert_eq!(ports(&left), [second]);
    assert!(TcpStream::connect(first.0).is_err());
    assert!(get(second.0).contains("from-the-guest"));
    assert!(missing.contains("capsa port web"), "{missing}");
    let forwards = &inspected["network"]["forwards"];
    assert_eq!(forwards[0]["listen"], second.0.to_string(), "{forwards}");
    assert_eq!(inspected["network"]["ipv4"], "10.0.2.3/24");

    capsa.text(&["rm", "-f", "web"]);
    assert!(TcpStream::connect(second.0).is_err());
    assert!(capsa.left().is_empty(), "{:?}", capsa.left());
}
