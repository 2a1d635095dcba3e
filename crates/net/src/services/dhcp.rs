//! Address assignment for IPv4 (RFC 2131, RFC 2132): each guest is given the one address that the
//! configuration keeps for it, so there is nothing to remember.

use std::net::Ipv4Addr;

use capsa_core::MacAddress;

use crate::bytes::{Reader, put};

/// How long an address may be used, in seconds; it is renewed after half of it.
const LEASE: u32 = 86_400;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const FIXED: usize = 236;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

/// What a client is told.
#[derive(Clone, Debug)]
pub(crate) struct Lease<'a> {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Ipv4Addr,
    /// Whether the gateway leads anywhere.
    pub(crate) router: bool,
    pub(crate) mtu: u16,
    pub(crate) host_name: &'a str,
    /// Names are looked up below these.
    pub(crate) search: &'a [String],
}

/// What a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DhcpRequest {
    kind: u8,
    transaction: [u8; 4],
    broadcast: bool,
    client: Ipv4Addr,
    mac: MacAddress,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl DhcpRequest {
    /// Reads a message to the server's port.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let kind: [u8; 4] = reader.array()?;
        let transaction = reader.array()?;
        reader.take(2)?;
        let broadcast = reader.u16()? & 0x8000 != 0;
        let client = Ipv4Addr::from(reader.array::<4>()?);
        reader.take(12)?;
        let mac = MacAddress(reader.array()?);
        reader.take(FIXED - 34)?;
        let cookie: [u8; 4] = reader.array()?;
        let [1, 1, 6, _] = kind else { return None };
        if cookie != COOKIE {
            return None;
        }
        let mut request = Self {
            kind: 0,
            transaction,
            broadcast,
            client,
            mac,
            wanted: None,
            server: None,
        };
        while let Some(code) = reader.u8() {
            match code {
                0 => continue,
                255 => break,
                _ => {}
            }
            let length = reader.u8()?;
            let value = reader.take(length.into())?;
            let address = || {
                value
                    .first_chunk::<4>()
                    .map(|octets| Ipv4Addr::from(*octets))
            };
            match code {
                53 => request.kind = *value.first()?,
                50 => request.wanted = address(),
                54 => request.server = address(),
                _ => {}
            }
        }
        (request.kind != 0).then_some(request)
    }

    /// The reply, and where it goes; `None` when there is nothing to be said.
    pub(crate) fn answer(&self, lease: &Lease<'_>) -> Option<(Ipv4Addr, Vec<u8>)> {
        let kind = match self.kind {
            DISCOVER => OFFER,
            // Another server was chosen.
            REQUEST if self.server.is_some_and(|server| server != lease.gateway) => return None,
            REQUEST => {
                let wanted = self.wanted.unwrap_or(self.client);
                if wanted == lease.address { ACK } else { NAK }
            }
            INFORM => ACK,
            DECLINE | RELEASE => return None,
            _ => return None,
        };
        let mut message = vec![0; FIXED];
        put(&mut message, 0, &[2, 1, 6, 0]);
        put(&mut message, 4, &self.transaction);
        let broadcast = self.broadcast || kind == NAK;
        if broadcast {
            put(&mut message, 10, &[0x80, 0]);
        }
        put(&mut message, 12, &self.client.octets());
        if kind != NAK && self.kind != INFORM {
            put(&mut message, 16, &lease.address.octets());
        }
        if kind != NAK {
            put(&mut message, 20, &lease.gateway.octets());
        }
        put(&mut message, 28, &self.mac.0);
        message.extend_from_slice(&COOKIE);
        option(&mut message, 53, &[kind]);
        option(&mut message, 54, &lease.gateway.octets());
        if kind != NAK {
            self.options(&mut message, lease);
        }
        message.push(255);
        // RFC 951 clients expect at least this much.
        message.resize(message.len().max(300), 0);
        let unicast = self.kind == INFORM || !self.client.is_unspecified() && !broadcast;
        let to = match (unicast, broadcast) {
            (true, _) => self.client,
            (false, true) => Ipv4Addr::BROADCAST,
            // The client's hardware address is in the frame, so it gets it without ARP.
            (false, false) => lease.address,
        };
        Some((to, message))
    }

    fn options(&self, message: &mut Vec<u8>, lease: &Lease<'_>) {
        if self.kind != INFORM {
            option(message, 51, &LEASE.to_be_bytes());
            option(message, 58, &(LEASE / 2).to_be_bytes());
            option(message, 59, &(LEASE / 8 * 7).to_be_bytes());
        }
        let mask = u32::MAX
            .checked_shl(32 - u32::from(lease.prefix))
            .unwrap_or(0);
        option(message, 1, &mask.to_be_bytes());
        let broadcast = u32::from(lease.address) | !mask;
        option(message, 28, &broadcast.to_be_bytes());
        if lease.router {
            option(message, 3, &lease.gateway.octets());
        }
        option(message, 6, &lease.gateway.octets());
        option(message, 26, &lease.mtu.to_be_bytes());
        option(message, 12, lease.host_name.as_bytes());
        if let Some(domain) = lease.search.first() {
            option(message, 15, domain.as_bytes());
        }
        let mut search = Vec::new();
        for domain in lease.search {
            let start = search.len();
            for label in domain.split('.') {
                search.push(u8::try_from(label.len()).unwrap_or_default());
                search.extend_from_slice(label.as_bytes());
            }
            search.push(0);
            if search.len() > 255 {
                search.truncate(start);
                break;
            }
        }
        if !search.is_empty() {
            option(message, 119, &search);
        }
    }
}

fn option(message: &mut Vec<u8>, code: u8, value: &[u8]) {
    if let Ok(length) = u8::try_from(value.len()) {
        message.extend_from_slice(&[code, length]);
        message.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: u8, options: &[&[u8]]) -> Vec<u8> {
        let mut message = vec![0; FIXED];
        put(&mut message, 0, &[1, 1, 6, 0, 9, 9, 9, 9]);
        put(&mut message, 28, &[2, 0, 0, 0, 0, 7]);
        message.extend_from_slice(&COOKIE);
        option(&mut message, 53, &[kind]);
        message.extend(options.concat());
        message.push(255);
        message
    }

    fn answer(message: &[u8]) -> Option<(Ipv4Addr, Vec<u8>)> {
        let search = ["corp.example".to_owned()];
        let lease = Lease {
            address: Ipv4Addr::new(10, 0, 2, 3),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 1),
            router: true,
            mtu: 1500,
            host_name: "vm",
            search: &search,
        };
        DhcpRequest::parse(message)?.answer(&lease)
    }

    #[test]
    fn discover_is_offered_the_kept_address() {
        let (to, offer) = answer(&request(DISCOVER, &[])).unwrap();
        assert_eq!(to, Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(offer[16..20], [10, 0, 2, 3]);
        assert_eq!(offer[240..243], [53, 1, OFFER]);
        let search = b"\x77\x0e\x04corp\x07example\x00";
        assert!(offer.windows(search.len()).any(|window| window == search));
    }

    #[test]
    fn request_for_another_address_is_refused() {
        let wanted = [50, 4, 192, 168, 0, 9];
        let (to, nak) = answer(&request(REQUEST, &[&wanted])).unwrap();
        assert_eq!((to, nak[242]), (Ipv4Addr::BROADCAST, NAK));
        let right = [50, 4, 10, 0, 2, 3];
        assert_eq!(answer(&request(REQUEST, &[&right])).unwrap().1[242], ACK);
        let other_server = [54, 4, 10, 0, 2, 9];
        assert_eq!(answer(&request(REQUEST, &[&right, &other_server])), None);
    }

    #[test]
    fn malformed_messages_have_no_answer() {
        let whole = request(DISCOVER, &[]);
        for end in 0..240 {
            assert_eq!(answer(&whole[..end]), None);
        }
        assert_eq!(answer(&request(DISCOVER, &[&[50, 200, 1]])), None);
    }
}
