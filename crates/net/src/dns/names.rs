//! The names of the network itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{Query, Rcode, encode_name, record};
use crate::INTERNAL_DOMAIN;

/// Short enough that a guest which is replaced is found soon.
const TTL: u32 = 10;

/// Somebody with a name on the network.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
}

/// Answers a query about the network's own names and addresses; `None` when it is about others.
/// `local` says which addresses are the network's.
pub(crate) fn answer(
    query: &Query,
    named: &[Named],
    local: impl Fn(IpAddr) -> bool,
) -> Option<Vec<u8>> {
    if let Some(address) = reverse_address(&query.name) {
        if !local(address) {
            return None;
        }
        let found = named.iter().find(|n| {
            n.ipv4.map(IpAddr::V4) == Some(address) || n.ipv6.map(IpAddr::V6) == Some(address)
        });
        let Some(found) = found else {
            return Some(query.reply(Rcode::NoSuchName));
        };
        let name = encode_name(&format!("{}.{INTERNAL_DOMAIN}", found.name));
        let records = match query.record_type {
            record::PTR | record::ANY => vec![(record::PTR, name)],
            _ => Vec::new(),
        };
        return Some(query.reply_with(&records, TTL));
    }
    let below = query
        .name
        .strip_suffix(INTERNAL_DOMAIN)
        .and_then(|rest| match rest {
            "" => Some(""),
            _ => rest.strip_suffix('.'),
        });
    let (label, internal) = match below {
        Some(label) => (label, true),
        None => (query.name.as_str(), false),
    };
    let Some(found) = named.iter().find(|n| n.name == label) else {
        return internal.then(|| {
            query.reply(if label.is_empty() {
                Rcode::Ok
            } else {
                Rcode::NoSuchName
            })
        });
    };
    // Bare, `host` and `gateway` could be names of the outside's search domain.
    if !internal && matches!(label, "host" | "gateway") {
        return None;
    }
    let mut records = Vec::new();
    if matches!(query.record_type, record::A | record::ANY) {
        records.extend(found.ipv4.map(|v4| (record::A, v4.octets().to_vec())));
    }
    if matches!(query.record_type, record::AAAA | record::ANY) {
        records.extend(found.ipv6.map(|v6| (record::AAAA, v6.octets().to_vec())));
    }
    Some(query.reply_with(&records, TTL))
}

/// The address that a name of the reverse zones stands for.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = rest.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then(|| IpAddr::from(octets));
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut value = 0u128;
    let mut count = 0;
    for part in rest.split('.').rev() {
        if part.len() != 1 || count == 32 {
            return None;
        }
        value = value << 4 | u128::from(u8::from_str_radix(part, 16).ok()?);
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(Ipv6Addr::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::{Answer, tests::query};

    fn ask(name: &str, kind: u16) -> Option<(u8, Vec<IpAddr>)> {
        let named = [
            Named {
                name: "db".into(),
                ipv4: "10.0.2.4".parse().ok(),
                ipv6: "fd00::4".parse().ok(),
            },
            Named {
                name: "host".into(),
                ipv4: "10.0.2.2".parse().ok(),
                ipv6: None,
            },
        ];
        let query = Query::parse(&query(name, kind)).unwrap();
        let net: crate::Cidr = "10.0.2.0/24".parse().unwrap();
        let reply = answer(&query, &named, |address| net.contains(address))?;
        let answer = Answer::parse(&reply, &query).unwrap();
        Some((answer.code, answer.addresses))
    }

    #[test]
    fn names_on_the_network_resolve_both_ways() {
        let db4: Vec<IpAddr> = vec!["10.0.2.4".parse().unwrap()];
        assert_eq!(ask("DB", record::A), Some((0, db4.clone())));
        assert_eq!(ask("db.capsa.internal", record::A), Some((0, db4)));
        assert_eq!(
            ask("db.capsa.internal", record::AAAA),
            Some((0, vec!["fd00::4".parse().unwrap()]))
        );
        assert_eq!(
            ask("host.capsa.internal", record::A),
            Some((0, vec!["10.0.2.2".parse().unwrap()]))
        );
        assert_eq!(ask("host", record::A), None);
        assert_eq!(ask("nobody.capsa.internal", record::A), Some((3, vec![])));
        assert_eq!(ask("4.2.0.10.in-addr.arpa", record::PTR), Some((0, vec![])));
        assert_eq!(ask("5.2.0.10.in-addr.arpa", record::PTR), Some((3, vec![])));
        assert_eq!(ask("1.1.1.1.in-addr.arpa", record::PTR), None);
        assert_eq!(ask("example.com", record::A), None);
    }
}
