//! How guests get their addresses: DHCP, router advertisements, neighbours.

use crate::lab::{Lab, network, run, sysctl};

#[test]
fn dhcp_client_gets_address_route_and_mtu() {
    let mut config = network();
    config.mtu = 1420;
    let lab = Lab::bare(config);
    run(&mut lab.command("g0", "ip link set tap0 up"));
    let lease = format!("/tmp/{}.lease", lab.namespace("g0"));
    let script = "/bin/true";
    let line = format!(
        "dhclient -4 -1 -v -d -sf {script} -lf {lease} -pf /dev/null tap0 & p=$!; \
        until grep -q 'fixed-address' {lease} 2>/dev/null; do sleep 0.1; done; kill $p; cat {lease}; rm {lease}"
    );
    let text = lab.guest(&line);
    for wanted in [
        "fixed-address 10.0.2.3;",
        "option routers 10.0.2.1;",
        "option domain-name-servers 10.0.2.1;",
        "option interface-mtu 1420;",
        "option host-name \"vm\";",
    ] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
}

#[test]
fn router_advertisement_gives_address_route_and_mtu() {
    let mut config = network();
    config.mtu = 1420;
    let lab = Lab::bare(config);
    sysctl(&lab.namespace("g0"), "net/ipv6/conf/tap0/accept_dad", "1");
    run(&mut lab.command("g0", "ip link set tap0 mtu 1500; ip link set tap0 up"));
    let own = lab.addresses[0].ipv6.unwrap();
    let line = format!(
        "until ip -6 addr show dev tap0 -tentative | grep -q {own}; do sleep 0.1; done; \
        ip -6 route show default; cat /proc/sys/net/ipv6/conf/tap0/mtu"
    );
    let text = lab.guest(&line);
    assert!(
        text.contains("via fe80::ca95:0:1 dev tap0 proto ra"),
        "{text}"
    );
    assert!(text.trim_end().ends_with("1420"), "{text}");
    lab.guest("ping -c 1 -W 5 2606:4700::1234");
    let text = lab.guest("rdisc6 -1 tap0");
    let gateway = lab.addresses[0].ipv6_gateway.unwrap();
    assert!(
        text.contains(&format!("Recursive DNS server     : {gateway}")),
        "{text}"
    );
}

#[test]
fn guest_with_an_address_that_is_not_its_own_is_not_heard() {
    let lab = Lab::start();
    run(&mut lab.command("g0", "ip addr add 10.0.2.77/24 dev tap0"));
    let (success, _) = lab.try_guest("ping -c 1 -W 1 -I 10.0.2.77 10.0.2.1");
    assert!(!success);
    let counters = lab
        .block_on(lab.control().guests())
        .unwrap()
        .remove(0)
        .counters;
    assert!(counters.spoofed > 0);
    lab.guest("ping -c 1 -W 5 -I 10.0.2.3 10.0.2.1");
}
