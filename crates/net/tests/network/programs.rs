//! Real programs: curl, iperf3, over each frame format.

use std::fmt::Write;

use capsa_net::FrameFormat;

use crate::lab::{Lab, SERVER4, SERVER6, network, run};

/// Starts nginx in the internet namespace, serving HTTP on 80 and HTTPS with HTTP/2 on 443.
pub fn nginx(lab: &mut Lab) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().display().to_string();
    std::process::Command::new("chmod")
        .args(["755", &root])
        .status()
        .unwrap();
    run(std::process::Command::new("openssl").args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=www.example.com",
        "-addext",
        "subjectAltName=DNS:www.example.com,DNS:other.example.org,IP:1.2.3.4",
        "-keyout",
        &format!("{root}/key.pem"),
        "-out",
        &format!("{root}/cert.pem"),
    ]));
    std::fs::write(dir.path().join("big"), vec![0x5a; 50 << 20]).unwrap();
    std::fs::write(dir.path().join("index.html"), "the page\n").unwrap();
    let mut config = String::new();
    write!(
        config,
        "daemon off; worker_processes 1; user root; pid {root}/pid; error_log {root}/error.log;
        events {{ worker_connections 4096; }}
        http {{ access_log {root}/access.log; client_body_temp_path {root}/body;
        proxy_temp_path {root}/p; fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
        server {{ listen 80; listen [::]:80; listen 443 ssl http2; listen [::]:443 ssl http2;
        ssl_certificate {root}/cert.pem; ssl_certificate_key {root}/key.pem; root {root}; }} }}"
    )
    .unwrap();
    let file = dir.path().join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    lab.spawn(
        "i",
        &format!("nginx -e {root}/start.log -c {}", file.display()),
    );
    lab.wait_for_port("i", 80);
    lab.wait_for_port("i", 443);
    dir
}

#[test]
fn curl_fetches_by_http_https_and_http2_in_both_families() {
    let mut lab = Lab::start();
    let dir = nginx(&mut lab);
    let ca = dir.path().join("cert.pem").display().to_string();
    let fetch = format!("curl -sS --max-time 30 --cacert {ca}");
    for (host, at) in [
        (SERVER4.to_owned(), SERVER4),
        (format!("[{SERVER6}]"), SERVER6),
    ] {
        assert_eq!(lab.guest(&format!("{fetch} http://{host}/")), "the page\n");
        for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let resolve = format!("--resolve 'www.example.com:443:{at}'");
            let text = lab.guest(&format!(
                "{fetch} {flag} {resolve} -w '%{{http_version}}' https://www.example.com/"
            ));
            assert_eq!(text, format!("the page\n{version}"));
        }
        let sum = lab.guest(&format!("{fetch} http://{host}/big | sha256sum"));
        let expected =
            run(std::process::Command::new("sha256sum").arg(dir.path().join("big"))).stdout;
        assert_eq!(
            sum.split(' ').next(),
            String::from_utf8_lossy(&expected).split(' ').next()
        );
    }
}

fn iperf(format: FrameFormat, mtu: u16) {
    let mut config = network();
    config.guests[0].frames = format;
    config.mtu = mtu;
    let mut lab = Lab::with(config);
    lab.spawn("i", &format!("iperf3 -s -B {SERVER4} -p 5201"));
    lab.spawn("i", &format!("iperf3 -s -B {SERVER6} -p 5202"));
    lab.wait_for_port("i", 5201);
    lab.wait_for_port("i", 5202);
    for arguments in [
        "",
        "-R",
        "-P 8",
        "-P 8 -R",
        "-u -b 100M -l 1400",
        "-u -b 100M -l 1400 -R",
    ] {
        let host = if arguments.contains("-P") {
            format!("{SERVER6} -p 5202")
        } else {
            SERVER4.to_owned()
        };
        let text = lab.guest(&format!("iperf3 -c {host} -n 64M -f m {arguments}"));
        let line = text
            .lines()
            .rev()
            .find(|line| line.contains("receiver"))
            .unwrap_or_default();
        println!("{format:?} mtu {mtu} {arguments:>16}: {line}");
        let moved = line.split_whitespace().rev().collect::<Vec<_>>();
        assert!(
            moved
                .iter()
                .any(|word| word.parse::<f64>().is_ok_and(|value| value > 1.0)),
            "{text}"
        );
    }
}

#[test]
fn iperf3_runs_both_ways_over_datagrams() {
    iperf(FrameFormat::Datagram, 1500);
}

#[test]
fn iperf3_runs_both_ways_with_offloads() {
    iperf(FrameFormat::Virtio, 1500);
}

#[test]
fn iperf3_runs_both_ways_over_a_stream() {
    iperf(FrameFormat::Stream, 1500);
}

#[test]
fn iperf3_runs_both_ways_with_jumbo_frames() {
    iperf(FrameFormat::Datagram, capsa_net::MAX_MTU);
}
