//! The server name in a connection's first bytes: TLS client hello (RFC 8446 section 4.1.2,
//! RFC 6066 section 3) and HTTP/1 request (RFC 9112 section 3.2).

use crate::bytes::Reader;

/// The most bytes that are looked at.
pub(crate) const MAX_LOOK: usize = 16 * 1024;

/// What the first bytes say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// More bytes are needed to tell.
    Incomplete,
    /// Neither TLS nor HTTP, or a hello or request without a server name.
    Nothing,
    /// TLS or HTTP, but not such that a server name could be read.
    Unreadable,
    /// The server name, in lower case, without a port or a closing dot.
    Name(String),
}

/// Looks at the first bytes that a client sent.
pub(crate) fn sniff(data: &[u8]) -> Sniffed {
    let result = match data.first() {
        None => return Sniffed::Incomplete,
        Some(0x16) => client_hello(data),
        Some(b'A'..=b'Z') => http_host(data),
        Some(_) => return Sniffed::Nothing,
    };
    if result == Sniffed::Incomplete && data.len() >= MAX_LOOK {
        return Sniffed::Unreadable;
    }
    result
}

/// Puts the handshake message together from its records, then reads it.
fn client_hello(data: &[u8]) -> Sniffed {
    let mut handshake = Vec::new();
    let mut reader = Reader::new(data);
    while let Some(kind) = reader.u8() {
        if kind != 0x16 {
            return Sniffed::Unreadable;
        }
        let (Some(major), Some(_minor)) = (reader.u8(), reader.u8()) else {
            return Sniffed::Incomplete;
        };
        if major != 3 {
            return Sniffed::Nothing;
        }
        let Some(length) = reader.u16() else {
            return Sniffed::Incomplete;
        };
        if length == 0 || length > (1 << 14) + 256 {
            return Sniffed::Unreadable;
        }
        let available = reader.rest().len().min(length.into());
        handshake.extend_from_slice(reader.take(available).unwrap_or_default());
        if let [kind, a, b, c, body @ ..] = handshake.as_slice() {
            if *kind != 1 {
                return Sniffed::Unreadable;
            }
            let wanted = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if wanted > MAX_LOOK {
                return Sniffed::Unreadable;
            }
            if let Some(body) = body.get(..wanted) {
                return hello_name(body).unwrap_or(Sniffed::Unreadable);
            }
        }
    }
    Sniffed::Incomplete
}

/// `None` when the message is malformed.
fn hello_name(body: &[u8]) -> Option<Sniffed> {
    let mut hello = Reader::new(body);
    hello.take(2 + 32)?;
    let session_id = hello.u8()?;
    hello.take(session_id.into())?;
    let cipher_suites = hello.u16()?;
    hello.take(cipher_suites.into())?;
    let compression = hello.u8()?;
    hello.take(compression.into())?;
    if hello.rest().is_empty() {
        return Some(Sniffed::Nothing);
    }
    let length = hello.u16()?;
    let mut extensions = Reader::new(hello.take(length.into())?);
    let mut found = None;
    while !extensions.rest().is_empty() {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let content = extensions.take(length.into())?;
        if kind != 0 {
            continue;
        }
        if found.is_some() {
            return None;
        }
        let mut list = Reader::new(content);
        let length = list.u16()?;
        let mut names = Reader::new(list.take(length.into())?);
        while !names.rest().is_empty() {
            let kind = names.u8()?;
            let length = names.u16()?;
            let name = names.take(length.into())?;
            // Two names would let the server pick the one that was not looked at.
            if kind != 0 || found.is_some() {
                return None;
            }
            found = Some(normalized(name)?);
        }
    }
    Some(found.map_or(Sniffed::Nothing, Sniffed::Name))
}

fn http_host(data: &[u8]) -> Sniffed {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"POST ",
        b"PUT ",
        b"HEAD ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"CONNECT ",
        b"TRACE ",
    ];
    if !METHODS.iter().any(|method| data.starts_with(method)) {
        let could_be = METHODS.iter().any(|method| method.starts_with(data));
        return if could_be {
            Sniffed::Incomplete
        } else {
            Sniffed::Nothing
        };
    }
    let mut host = None;
    let mut lines = data.split_inclusive(|byte| *byte == b'\n');
    let Some(request) = lines.next().filter(|line| line.ends_with(b"\n")) else {
        return Sniffed::Incomplete;
    };
    let target = request
        .split(|byte| *byte == b' ')
        .nth(1)
        .unwrap_or_default();
    for line in lines {
        let Some(line) = line.strip_suffix(b"\n") else {
            return Sniffed::Incomplete;
        };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return finish_http(target, request.starts_with(b"CONNECT "), host);
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Sniffed::Unreadable;
        };
        let (name, value) = line.split_at(colon);
        if name.trim_ascii().eq_ignore_ascii_case(b"host") {
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            match (host.is_some(), authority_name(value)) {
                (false, Some(value)) => host = Some(value),
                _ => return Sniffed::Unreadable,
            }
        }
    }
    Sniffed::Incomplete
}

/// An absolute target or the target of CONNECT goes before the Host field, so both must agree.
fn finish_http(target: &[u8], connect: bool, host: Option<String>) -> Sniffed {
    let authority = if connect {
        Some(target)
    } else {
        let scheme = target.windows(3).position(|window| window == b"://");
        scheme
            .filter(|_| !target.starts_with(b"/"))
            .and_then(|at| target.get(at + 3..))
            .map(|rest| {
                rest.split(|byte| matches!(byte, b'/' | b'?' | b'#'))
                    .next()
                    .unwrap_or_default()
            })
    };
    let in_target = match authority.map(authority_name) {
        Some(None) => return Sniffed::Unreadable,
        Some(Some(name)) => Some(name),
        None => None,
    };
    match (in_target, host) {
        (Some(a), Some(b)) if a != b => Sniffed::Unreadable,
        (Some(name), _) | (None, Some(name)) => Sniffed::Name(name),
        (None, None) => Sniffed::Nothing,
    }
}

fn authority_name(value: &[u8]) -> Option<String> {
    let value = value.rsplit(|byte| *byte == b'@').next()?;
    if let Some(rest) = value.strip_prefix(b"[") {
        let end = rest.iter().position(|byte| *byte == b']')?;
        return normalized(rest.get(..end)?);
    }
    normalized(value.split(|byte| *byte == b':').next()?)
}

fn normalized(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let name = name.strip_suffix('.').unwrap_or(name);
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    (!name.is_empty() && name.len() <= 253 && name.bytes().all(fits))
        .then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(names: &[&str]) -> Vec<u8> {
        let mut list = Vec::new();
        for name in names {
            list.push(0);
            list.extend((name.len() as u16).to_be_bytes());
            list.extend(name.as_bytes());
        }
        let mut extensions = vec![0, 43, 0, 3, 2, 3, 4];
        if !names.is_empty() {
            extensions.extend([0, 0]);
            extensions.extend((list.len() as u16 + 2).to_be_bytes());
            extensions.extend((list.len() as u16).to_be_bytes());
            extensions.extend(list);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut handshake = vec![1, 0];
        handshake.extend((body.len() as u16).to_be_bytes());
        handshake.extend(body);
        handshake
    }

    fn record(content: &[u8]) -> Vec<u8> {
        let mut record = vec![0x16, 3, 1];
        record.extend((content.len() as u16).to_be_bytes());
        record.extend(content);
        record
    }

    #[test]
    fn hello_name_is_found_whole_split_and_in_pieces() {
        let handshake = hello(&["WWW.Example.com"]);
        let name = Sniffed::Name("www.example.com".to_owned());
        assert_eq!(sniff(&record(&handshake)), name);
        let split = [record(&handshake[..50]), record(&handshake[50..])].concat();
        assert_eq!(sniff(&split), name);
        for end in 0..split.len() - 1 {
            assert_eq!(sniff(&split[..end]), Sniffed::Incomplete, "{end}");
        }
    }

    #[test]
    fn odd_hellos_are_not_passed_as_nameless() {
        assert_eq!(sniff(&record(&hello(&[]))), Sniffed::Nothing);
        assert_eq!(
            sniff(&record(&hello(&["a.example", "b.example"]))),
            Sniffed::Unreadable
        );
        assert_eq!(sniff(&record(&hello(&["a b"]))), Sniffed::Unreadable);
        assert_eq!(sniff(&record(&[2, 0, 0, 1, 0])), Sniffed::Unreadable);
        let endless = [0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xff].into_iter();
        let endless: Vec<u8> = endless.chain(std::iter::repeat_n(0, MAX_LOOK)).collect();
        assert_eq!(sniff(&endless[..MAX_LOOK]), Sniffed::Unreadable);
    }

    #[test]
    fn http_host_is_found() {
        let name = |text: &str| sniff(text.as_bytes());
        let example = Sniffed::Name("example.com".to_owned());
        assert_eq!(
            name("GET / HTTP/1.1\r\nA: b\r\nhost:  Example.com:80\r\n\r\n"),
            example
        );
        assert_eq!(
            name("GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n"),
            example
        );
        assert_eq!(name("CONNECT example.com:443 HTTP/1.1\r\n\r\n"), example);
        assert_eq!(name("GET / HTTP/1.1\r\nHost: exam"), Sniffed::Incomplete);
        assert_eq!(name("GE"), Sniffed::Incomplete);
        assert_eq!(name("SSH-2.0-x\r\n"), Sniffed::Nothing);
        assert_eq!(name("GET / HTTP/1.0\r\n\r\n"), Sniffed::Nothing);
        let two = "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n";
        assert_eq!(name(two), Sniffed::Unreadable);
        let differ = "GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n";
        assert_eq!(name(differ), Sniffed::Unreadable);
    }
}
