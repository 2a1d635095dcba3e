//! What policies let through, by what reaches the server.

use std::time::{Duration, Instant};

use capsa_net::{Action, Event, Policy, Reason, Rule, Subject};

use crate::dns::dnsmasq;
use crate::lab::{Lab, SERVER4};
use crate::programs::nginx;

const FETCH: &str = "curl -sS -k --max-time 10 -o /dev/null -w '%{http_code}'";

/// Whether a fetch works, and how many requests the server then had. The server logs a request some
/// time after it has answered: a fetch that worked is waited for in the log.
fn fetch(lab: &Lab, dir: &tempfile::TempDir, arguments: &str) -> (bool, usize) {
    let logged = || {
        let log = std::fs::read_to_string(dir.path().join("access.log")).unwrap_or_default();
        log.lines().count()
    };
    let before = logged();
    let (success, text) = lab.try_guest(&format!("{FETCH} {arguments}"));
    let fetched = success && text.ends_with("200");
    let patience = Instant::now() + Duration::from_secs(60);
    while fetched && logged() == before && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
    }
    (fetched, logged())
}

#[test]
fn one_domain_allow_list_lets_that_domain_through_and_nothing_else() {
    let mut lab =
        Lab::with_policy(Policy::allow_only(["www.example.com", "private.example.com"]).unwrap());
    dnsmasq(&mut lab, "");
    let dir = nginx(&mut lab);
    // A literal address, before any lookup.
    assert_eq!(fetch(&lab, &dir, "http://1.2.3.4/"), (false, 0));
    assert_eq!(fetch(&lab, &dir, "http://www.example.com/"), (true, 1));
    assert_eq!(fetch(&lab, &dir, "https://www.example.com/"), (true, 2));
    for denied in [
        "http://evil.org/",
        "http://5.6.7.8/",
        "http://[2606:4700::1234]/",
        "http://[::ffff:1.2.3.4]:80/ -H 'Host: evil.org'",
        // The allowed name's address under another name.
        "http://www.example.com/ -H 'Host: evil.org'",
        "https://evil.org/ --resolve evil.org:443:1.2.3.4",
        // An answer that points into the private network.
        "http://private.example.com/",
        "http://169.254.169.254/",
        "http://host.capsa.internal/",
    ] {
        assert_eq!(fetch(&lab, &dir, denied), (false, 2), "{denied}");
    }
    // A port scan sees closed ports only.
    let (_, text) =
        lab.try_guest("for p in 22 80 443 8080; do nc -z -w 2 5.6.7.8 $p && echo open; done");
    assert!(!text.contains("open"), "{text}");
    // What was allowed still is.
    assert_eq!(fetch(&lab, &dir, "https://www.example.com/"), (true, 3));
}

#[test]
fn alias_of_an_allowed_name_is_followed() {
    let mut lab = Lab::with_policy(Policy::allow_only(["alias.example.com:80"]).unwrap());
    dnsmasq(&mut lab, "");
    let dir = nginx(&mut lab);
    assert_eq!(fetch(&lab, &dir, "http://alias.example.com/"), (true, 1));
    assert_eq!(fetch(&lab, &dir, "https://alias.example.com/"), (false, 1));
}

#[test]
fn denied_fails_fast_and_names_its_rule() {
    let mut policy = Policy::allow_all();
    policy
        .rules
        .push(Rule::deny("5.6.7.0/24").unwrap().named("no five"));
    let mut lab = Lab::with_policy(policy);
    let dir = nginx(&mut lab);
    let mut events = lab.control().events();
    lab.block_on(lab.control().subscribe_policy(true)).unwrap();
    assert_eq!(fetch(&lab, &dir, "http://5.6.7.8/"), (false, 0));
    let (success, text) = lab.try_guest("ping -c 1 -W 5 5.6.7.8");
    assert!(!success && text.contains("Packet filtered"), "{text}");
    let event = lab.block_on(async {
        loop {
            if let Event::Policy(event) = events.recv().await.unwrap() {
                break event;
            }
        }
    });
    assert_eq!(event.action, Action::Deny);
    assert!(matches!(&event.reason, Reason::Rule { index: 0, rule } if rule == "no five"));
    assert!(
        matches!(&event.subject, Subject::Flow { remote, .. } if remote.to_string() == "5.6.7.8:80")
    );
}

#[test]
fn policy_changes_while_running_and_ends_what_it_denies() {
    let lab = Lab::start();
    let server = lab.within("i", || std::net::TcpListener::bind((SERVER4, 7)).unwrap());
    let mut stream = lab.within("g0", || std::net::TcpStream::connect((SERVER4, 7)).unwrap());
    let (mut accepted, _) = server.accept().unwrap();
    std::io::Write::write_all(&mut stream, b"x").unwrap();
    std::io::Read::read_exact(&mut accepted, &mut [0]).unwrap();
    let name = lab.config.guests[0].name.clone();
    lab.block_on(lab.control().set_policy(name, Policy::deny_all()))
        .unwrap();
    for end in [&mut stream, &mut accepted] {
        let error = std::io::Read::read(end, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let refused = lab.within("g0", || {
        std::net::TcpStream::connect((SERVER4, 7)).unwrap_err()
    });
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn learned_allow_list_lets_the_same_through() {
    let mut policy = Policy::deny_all();
    policy.learn = true;
    let mut lab = Lab::with_policy(policy);
    dnsmasq(&mut lab, "");
    let dir = nginx(&mut lab);
    assert_eq!(fetch(&lab, &dir, "https://www.example.com/"), (true, 1));
    assert_eq!(fetch(&lab, &dir, "http://5.6.7.8/"), (true, 2));
    let name = lab.config.guests[0].name.clone();
    let learned = lab.block_on(lab.control().learned(name.clone())).unwrap();
    let texts: Vec<String> = learned.rules.iter().map(Rule::text).collect();
    assert_eq!(texts, ["tcp:www.example.com:443", "tcp:5.6.7.8:80"]);
    lab.block_on(lab.control().set_policy(name, learned))
        .unwrap();
    assert_eq!(fetch(&lab, &dir, "https://www.example.com/"), (true, 3));
    assert_eq!(fetch(&lab, &dir, "http://5.6.7.8/"), (true, 4));
    assert_eq!(fetch(&lab, &dir, "http://www.example.com/"), (false, 4));
}
