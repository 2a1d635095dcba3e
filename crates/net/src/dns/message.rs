//! DNS messages (RFC 1035 section 4, RFC 6891): as much of them as a forwarder has to understand.

use std::fmt::Write;
use std::net::IpAddr;

use crate::bytes::{Reader, be16, put};

/// Bytes of a message's header.
const HEADER: usize = 12;
/// The most records of an answer that are looked at.
const MAX_RECORDS: usize = 4096;

/// Record types.
pub(crate) mod record {
    pub(crate) const A: u16 = 1;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const ANY: u16 = 255;
}

/// Response codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rcode {
    Ok = 0,
    FormatError = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// A query with one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) id: [u8; 2],
    /// In lower case, without a dot at its end; bytes that no host name has as `\DDD`.
    pub(crate) name: String,
    pub(crate) record_type: u16,
    pub(crate) class: u16,
    /// Where the question ends.
    pub(crate) question_end: usize,
    /// How long an answer over UDP may be.
    pub(crate) udp_size: usize,
    /// Flags of the header and of EDNS that may change the answer.
    pub(crate) flavor: u32,
    pub(crate) message: Vec<u8>,
}

/// Reads the name at `at`, following compression pointers; returns it and where it ends.
fn read_name(message: &[u8], at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut position = at;
    let mut end = None;
    let mut length = 0;
    // A pointer leads backwards only, so that there is no way round in circles.
    let mut lowest = at;
    loop {
        let label = usize::from(*message.get(position)?);
        match label {
            0 => return Some((name, end.unwrap_or(position + 1))),
            1..=63 => {
                length += label + 1;
                if length > 254 {
                    return None;
                }
                if !name.is_empty() {
                    name.push('.');
                }
                for byte in message.get(position + 1..position + 1 + label)? {
                    match byte.to_ascii_lowercase() {
                        plain @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') => {
                            name.push(plain.into())
                        }
                        odd => write!(name, "\\{odd:03}").ok()?,
                    }
                }
                position += 1 + label;
            }
            192..=255 => {
                let target = usize::from(be16(message, position)? & 0x3fff);
                if target >= lowest {
                    return None;
                }
                lowest = target;
                end = end.or(Some(position + 2));
                position = target;
            }
            _ => return None,
        }
    }
}

/// A record's fixed part.
struct Record {
    name: String,
    kind: u16,
    ttl_at: usize,
    ttl: u32,
    data_at: usize,
    data_len: usize,
}

fn read_record(message: &[u8], at: usize) -> Option<(Record, usize)> {
    let (name, end) = read_name(message, at)?;
    let mut reader = Reader::new(message.get(end..)?);
    let kind = reader.u16()?;
    reader.u16()?;
    let ttl = reader.u32()?;
    let data_len = usize::from(reader.u16()?);
    reader.take(data_len)?;
    let record = Record {
        name,
        kind,
        ttl_at: end + 4,
        ttl,
        data_at: end + 10,
        data_len,
    };
    Some((record, end + 10 + data_len))
}

impl Query {
    /// Reads a query. `Err` has what to reply, if anything.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Option<Vec<u8>>> {
        let flags = be16(message, 2).ok_or(None)?;
        if message.len() < HEADER || flags & 0x8000 != 0 {
            return Err(None);
        }
        let error = |code| Err(Some(error_reply(message, HEADER, code)));
        if flags & 0x7800 != 0 {
            return error(Rcode::NotImplemented);
        }
        let read = || {
            let (name, end) = read_name(message, HEADER)?;
            let (kind, class) = (be16(message, end)?, be16(message, end + 2)?);
            Some((name, end + 4, kind, class))
        };
        let count = |at| be16(message, at).unwrap_or_default();
        let Some((name, question_end, record_type, class)) = read().filter(|_| count(4) == 1)
        else {
            return error(Rcode::FormatError);
        };
        let mut udp_size = 512;
        let mut flavor = u32::from(flags & 0x0110); // recursion desired, checking disabled
        let mut at = question_end;
        let records = [6, 8, 10]
            .map(|at| usize::from(count(at)))
            .iter()
            .sum::<usize>();
        for _ in 0..records.min(16) {
            let Some((record, end)) = read_record(message, at) else {
                return error(Rcode::FormatError);
            };
            if record.kind == record::OPT {
                udp_size = usize::from(be16(message, record.ttl_at - 2).unwrap_or(512)).max(512);
                flavor |= (record.ttl & 0x8000) << 8 | 0x1_0000; // DNSSEC wanted, EDNS spoken
            }
            at = end;
        }
        Ok(Self {
            id: message.first_chunk::<2>().copied().unwrap_or_default(),
            name,
            record_type,
            class,
            question_end,
            udp_size,
            flavor,
            message: message.to_vec(),
        })
    }

    /// A reply without records.
    pub(crate) fn reply(&self, code: Rcode) -> Vec<u8> {
        error_reply(&self.message, self.question_end, code)
    }

    /// A reply with records for the question's own name.
    pub(crate) fn reply_with(&self, records: &[(u16, Vec<u8>)], ttl: u32) -> Vec<u8> {
        let mut reply = self.reply(Rcode::Ok);
        put(&mut reply, 2, &[0x85, 0x80]); // authoritative
        let count = u16::try_from(records.len()).unwrap_or_default();
        put(&mut reply, 6, &count.to_be_bytes());
        for (kind, data) in records {
            reply.extend_from_slice(&[0xc0, HEADER as u8]);
            reply.extend_from_slice(&kind.to_be_bytes());
            reply.extend_from_slice(&[0, 1]);
            reply.extend_from_slice(&ttl.to_be_bytes());
            reply.extend_from_slice(&u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
            reply.extend_from_slice(data);
        }
        reply
    }

    /// `answer` as a client by UDP may get it: whole, or cut to nothing but the mark of it.
    pub(crate) fn fit_udp(&self, answer: Vec<u8>) -> Vec<u8> {
        if answer.len() <= self.udp_size {
            return answer;
        }
        let mut cut = self.reply(Rcode::Ok);
        let flags = be16(&answer, 2).unwrap_or_default() | 0x0200;
        put(&mut cut, 2, &flags.to_be_bytes());
        cut
    }

    /// Puts this query's identifier and spelling of the name into an answer to the same question.
    pub(crate) fn address(&self, answer: &mut [u8]) {
        put(answer, 0, &self.id);
        let question = self
            .message
            .get(HEADER..self.question_end)
            .unwrap_or_default();
        put(answer, HEADER, question);
    }
}

/// The header and question of `message` as a reply with `code`.
fn error_reply(message: &[u8], question_end: usize, code: Rcode) -> Vec<u8> {
    let mut reply = message.get(..question_end).unwrap_or(message).to_vec();
    reply.resize(reply.len().max(HEADER), 0);
    let opcode_and_rd = message.get(2).copied().unwrap_or_default() & 0x79;
    put(&mut reply, 2, &[0x80 | opcode_and_rd, 0x80 | code as u8]);
    let questions = u16::from(question_end > HEADER);
    put(&mut reply, 4, &questions.to_be_bytes());
    put(&mut reply, 6, &[0; 6]);
    reply
}

/// What a forwarder wants to know of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: u8,
    pub(crate) truncated: bool,
    /// The question's name and those it is an alias of.
    pub(crate) names: Vec<String>,
    /// Addresses of any of them.
    pub(crate) addresses: Vec<IpAddr>,
    /// How long it may be kept, in seconds; `None` when it may not.
    pub(crate) ttl: Option<u32>,
    /// Where its times to live stand.
    pub(crate) ttl_at: Vec<usize>,
}

impl Answer {
    /// Reads an answer to `query`. `None` when it is malformed, or one to something else.
    pub(crate) fn parse(message: &[u8], query: &Query) -> Option<Self> {
        let flags = be16(message, 2)?;
        let (name, end) = read_name(message, HEADER)?;
        let same = name == query.name
            && be16(message, end)? == query.record_type
            && be16(message, end + 2)? == query.class
            && be16(message, 4)? == 1
            && flags & 0xf800 == 0x8000;
        if !same {
            return None;
        }
        let mut answer = Self {
            code: (flags & 15) as u8,
            truncated: flags & 0x0200 != 0,
            names: vec![name],
            addresses: Vec::new(),
            ttl: None,
            ttl_at: Vec::new(),
        };
        if answer.truncated {
            return Some(answer);
        }
        answer.read_records(message, end + 4)?;
        if !matches!(answer.code, 0 | 3) {
            answer.ttl = None;
        }
        Some(answer)
    }

    fn read_records(&mut self, message: &[u8], start: usize) -> Option<()> {
        let [answers, authorities, additionals] =
            [6, 8, 10].map(|at| be16(message, at).unwrap_or_default());
        let total = usize::from(answers) + usize::from(authorities) + usize::from(additionals);
        let mut at = start;
        let mut soa_ttl = None;
        for index in 0..total.min(MAX_RECORDS) {
            let (record, end) = read_record(message, at)?;
            at = end;
            if record.kind == record::OPT {
                continue;
            }
            self.ttl_at.push(record.ttl_at);
            let in_answer = index < usize::from(answers);
            if in_answer {
                self.ttl = Some(self.ttl.map_or(record.ttl, |ttl| ttl.min(record.ttl)));
                self.read_answer(message, &record)?;
            } else if record.kind == record::SOA
                && index < usize::from(answers) + usize::from(authorities)
            {
                // How long a "no" lasts (RFC 2308 section 5).
                let minimum = record.data_at + record.data_len.checked_sub(4)?;
                let minimum = u32::from_be_bytes(*message.get(minimum..)?.first_chunk()?);
                soa_ttl = Some(record.ttl.min(minimum));
            }
        }
        if self.ttl.is_none() {
            self.ttl = soa_ttl;
        }
        Some(())
    }

    fn read_answer(&mut self, message: &[u8], record: &Record) -> Option<()> {
        if !self.names.contains(&record.name) {
            return Some(());
        }
        let data = message.get(record.data_at..record.data_at + record.data_len)?;
        match record.kind {
            record::CNAME if self.names.len() < 32 => {
                let (target, _) = read_name(message, record.data_at)?;
                if !self.names.contains(&target) {
                    self.names.push(target);
                }
            }
            record::A => self
                .addresses
                .push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            record::AAAA => self
                .addresses
                .push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
            _ => {}
        }
        Some(())
    }
}

/// A name in the form it has in messages.
pub(crate) fn encode_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = label.as_bytes().get(..63).unwrap_or(label.as_bytes());
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(encode_name(name));
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    /// An answer in which `www.example.com` is an alias of `cdn.example.net` at 1.2.3.4.
    pub(crate) fn aliased_answer(query: &Query) -> Vec<u8> {
        let mut answer = query.reply(Rcode::Ok);
        put(&mut answer, 6, &[0, 2]);
        let target = encode_name("cdn.example.net");
        answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 1, 0, 0, target.len() as u8]);
        answer.extend(&target);
        answer.extend(target);
        answer.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4]);
        answer
    }

    #[test]
    fn alias_and_address_are_found() {
        let query = Query::parse(&query("WWW.example.com", record::A)).unwrap();
        assert_eq!(query.name, "www.example.com");
        let answer = Answer::parse(&aliased_answer(&query), &query).unwrap();
        assert_eq!(answer.names, ["www.example.com", "cdn.example.net"]);
        assert_eq!(answer.addresses, ["1.2.3.4".parse::<IpAddr>().unwrap()]);
        assert_eq!((answer.ttl, answer.ttl_at.len()), (Some(60), 2));
    }

    #[test]
    fn answer_to_another_question_is_refused() {
        let asked = Query::parse(&query("www.example.com", record::A)).unwrap();
        for (name, kind) in [
            ("www.example.org", record::A),
            ("www.example.com", record::AAAA),
        ] {
            let other = Query::parse(&query(name, kind)).unwrap();
            assert_eq!(Answer::parse(&aliased_answer(&other), &asked), None);
        }
    }

    #[test]
    fn dots_inside_a_label_do_not_make_a_name() {
        let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(b"\x0cevil.example\x03com\x00\x00\x01\x00\x01");
        assert_eq!(Query::parse(&message).unwrap().name, "evil\\046example.com");
    }

    #[test]
    fn malformed_names_are_refused() {
        let with_name = |name: &[u8]| {
            let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            message.extend(name);
            message.extend([0, 1, 0, 1]);
            Query::parse(&message)
        };
        let pointer_to_itself: &[u8] = &[0xc0, 12];
        let too_long = [[63; 64]; 4].concat();
        for name in [pointer_to_itself, &[0xc0, 200], &[0x40, 0], &too_long] {
            let reply = with_name(name).unwrap_err().unwrap();
            assert_eq!(reply[3] & 15, Rcode::FormatError as u8);
        }
        assert_eq!(Query::parse(&[1, 2, 0x80]), Err(None));
    }

    #[test]
    fn long_answer_is_cut_for_udp() {
        let query = Query::parse(&query("www.example.com", record::A)).unwrap();
        let answer = query.reply_with(&vec![(record::A, vec![1, 2, 3, 4]); 100], 60);
        let cut = query.fit_udp(answer.clone());
        assert!(cut.len() < 512 && cut[2] & 2 != 0);
        assert!(Answer::parse(&cut, &query).unwrap().truncated);
        assert_eq!(Answer::parse(&answer, &query).unwrap().addresses.len(), 100);
    }
}
