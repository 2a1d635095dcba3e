//! UDP and ICMP: both families, fragments, errors.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::lab::{Lab, SERVER4, SERVER6, network, run};

fn udp(lab: &Lab, which: &str, bind: &'static str, connect: Option<SocketAddr>) -> UdpSocket {
    lab.within(which, move || {
        let socket = UdpSocket::bind(bind).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        if let Some(to) = connect {
            socket.connect(to).unwrap();
        }
        socket
    })
}

#[test]
fn udp_of_any_size_is_answered_in_both_families() {
    let lab = Lab::start();
    for (bind, host, any) in [
        ("1.2.3.4:7", SERVER4, "0.0.0.0:0"),
        ("[2606:4700::1234]:7", SERVER6, "[::]:0"),
    ] {
        let server = udp(&lab, "i", bind, None);
        let to = SocketAddr::new(host.parse().unwrap(), 7);
        let guest = udp(&lab, "g0", any, Some(to));
        for size in [0, 1, 1400, 1472, 1473, 4000, 20_000, 65_000] {
            let data: Vec<u8> = (0..size).map(|n| n as u8).collect();
            guest.send(&data).unwrap();
            let mut buffer = vec![0; 70_000];
            let (length, client) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], data, "{host} {size} out");
            server.send_to(&data, client).unwrap();
            let length = guest.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], data, "{host} {size} back");
        }
    }
}

#[test]
fn udp_to_a_closed_port_is_refused() {
    let lab = Lab::start();
    for (host, any) in [(SERVER4, "0.0.0.0:0"), (SERVER6, "[::]:0")] {
        let guest = udp(
            &lab,
            "g0",
            any,
            Some(SocketAddr::new(host.parse().unwrap(), 9)),
        );
        guest.send(b"x").unwrap();
        assert_eq!(
            guest.recv(&mut [0; 9]).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
    }
}

#[test]
fn udp_flows_are_bounded_and_the_used_one_stays() {
    let mut config = network();
    config.limits.udp_flows = 16;
    let lab = Lab::with(config);
    let server = udp(&lab, "i", "1.2.3.4:7", None);
    let to: SocketAddr = "1.2.3.4:7".parse().unwrap();
    let mut used = None;
    for index in 0..100 {
        let guest = udp(&lab, "g0", "0.0.0.0:0", Some(to));
        guest.send(b"x").unwrap();
        let (_, client) = server.recv_from(&mut [0; 9]).unwrap();
        server.send_to(b"y", client).unwrap();
        guest.recv(&mut [0; 9]).unwrap();
        if index == 99 {
            used = Some(guest);
        }
    }
    let info = lab.block_on(lab.control().guests()).unwrap().remove(0);
    assert!(info.flows.1 <= 16, "{}", info.flows.1);
    let guest = used.unwrap();
    guest.send(b"again").unwrap();
    server.recv_from(&mut [0; 9]).unwrap();
}

#[test]
fn ping_crosses_in_both_families_small_and_large() {
    let lab = Lab::start();
    for host in [SERVER4, SERVER6, "10.0.2.1"] {
        lab.guest(&format!("ping -c 3 -i 0.2 -W 5 {host}"));
        lab.guest(&format!("ping -c 2 -i 0.2 -W 5 -s 9000 {host}"));
    }
    let (success, text) = lab.try_guest("ping -c 1 -W 1 -t 1 1.2.3.4");
    assert!(!success && text.contains("Time to live exceeded"), "{text}");
}

#[test]
fn path_mtu_reaches_the_guest() {
    let lab = Lab::start();
    run(&mut lab.command("h", "ip link set up0 mtu 1400"));
    for host in [SERVER4, SERVER6] {
        let (_, text) = lab.try_guest(&format!("ping -c 2 -i 0.2 -W 3 -M do -s 1420 {host}"));
        let told = text.contains("mtu = 1400") || text.contains("mtu=1400");
        assert!(told, "{host}: {text}");
    }
}

#[test]
fn jumbo_frames_pass_where_both_sides_take_them() {
    let mut config = network();
    config.mtu = capsa_net::MAX_MTU;
    let lab = Lab::with(config);
    lab.guest("ping -c 2 -i 0.2 -W 5 -M do -s 60000 10.0.2.1");
}
