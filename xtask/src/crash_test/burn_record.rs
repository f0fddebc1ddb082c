//! The values in a file that burn recorded, each by its path.
//!
//! Two files of the same values differ: burn draws an id for every parameter when it is made, and an optimizer's record
//! is a map from such ids in no order. Here every id is replaced by the path of its parameter in the model.
//!
//! The file is [MessagePack](https://github.com/msgpack/msgpack/blob/master/spec.md) with names.

use std::collections::BTreeMap;

use crate::Result;

/// Encoded values by path. A tensor has three: its bytes, its shape and its type.
pub(super) type Values = BTreeMap<String, Vec<u8>>;

/// Paths of parameters by id.
pub(super) type Ids = BTreeMap<String, String>;

const ID: &str = ".id";

/// The values of a model's record, without the ids, which come beside them.
pub(super) fn model(file: &[u8]) -> Result<(Values, Ids)> {
    let (mut values, mut ids) = (Values::new(), Ids::new());
    parse(file)?.collect(String::new(), &Ids::new(), &mut values);
    for (path, id) in &values {
        if let Some(parameter) = path.strip_suffix(ID) {
            ids.insert(text(id)?, parameter.into());
        }
    }
    values.retain(|path, _| !path.ends_with(ID));
    Ok((values, ids))
}

/// The values of an optimizer's record, those of a parameter under its path in the model.
pub(super) fn optimizer(file: &[u8], ids: &Ids) -> Result<Values> {
    let mut values = Values::new();
    parse(file)?.collect(String::new(), ids, &mut values);
    Ok(values)
}

fn parse(file: &[u8]) -> Result<Node<'_>> {
    let mut reader = Reader { rest: file };
    let node = reader.node()?;
    if reader.rest.is_empty() { Ok(node) } else { Err(format!("{} bytes follow the record", reader.rest.len())) }
}

fn text(encoded: &[u8]) -> Result<String> {
    Reader { rest: encoded }.text()
}

/// A value, and what it is made of.
enum Node<'a> {
    /// As it is encoded.
    Leaf(&'a [u8]),
    Branch(Vec<(String, Node<'a>)>),
}

impl Node<'_> {
    fn collect(&self, path: String, ids: &Ids, values: &mut Values) {
        match self {
            Self::Leaf(encoded) => drop(values.insert(path, encoded.to_vec())),
            Self::Branch(children) => {
                for (name, child) in children {
                    let name = ids.get(name).unwrap_or(name);
                    child.collect(format!("{path}.{name}"), ids, values);
                }
            }
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("the record ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    /// A length of `bytes` bytes.
    fn length(&mut self, bytes: usize) -> Result<usize> {
        Ok(self.take(bytes)?.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)))
    }

    fn node(&mut self) -> Result<Node<'a>> {
        let start = self.rest;
        let marker = self.take(1)?[0];
        let skip = match marker {
            0x80..=0x8f => return self.map(usize::from(marker & 0x0f)),
            0x90..=0x9f => return self.list(usize::from(marker & 0x0f)),
            0xdc | 0xdd => {
                let count = self.length(2 << (marker - 0xdc))?;
                return self.list(count);
            }
            0xde | 0xdf => {
                let count = self.length(2 << (marker - 0xde))?;
                return self.map(count);
            }
            0xa0..=0xbf => usize::from(marker & 0x1f),
            0xc4..=0xc6 => self.length(1 << (marker - 0xc4))?,
            0xd9..=0xdb => self.length(1 << (marker - 0xd9))?,
            0xca => 4,
            0xcb => 8,
            0xcc..=0xcf => 1 << (marker - 0xcc),
            0xd0..=0xd3 => 1 << (marker - 0xd0),
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 0,
            _ => return Err(format!("a record has no values that begin with {marker:#x}")),
        };
        self.take(skip)?;
        Ok(Node::Leaf(&start[..start.len() - self.rest.len()]))
    }

    fn map(&mut self, count: usize) -> Result<Node<'a>> {
        let child = |_| Ok((self.text()?, self.node()?));
        (0..count).map(child).collect::<Result<_>>().map(Node::Branch)
    }

    fn list(&mut self, count: usize) -> Result<Node<'a>> {
        let child = |index: usize| Ok((index.to_string(), self.node()?));
        (0..count).map(child).collect::<Result<_>>().map(Node::Branch)
    }

    fn text(&mut self) -> Result<String> {
        let marker = self.take(1)?[0];
        let length = match marker {
            0xa0..=0xbf => usize::from(marker & 0x1f),
            0xd9..=0xdb => self.length(1 << (marker - 0xd9))?,
            _ => return Err(format!("a name in a record begins with {marker:#x}")),
        };
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a name in a record is not UTF-8".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"item": {"a": {"id": ID, "param": BYTES}}}`
    fn recorded(id: &str, bytes: &[u8]) -> Vec<u8> {
        let name = |text: &str| [&[0xa0 | text.len() as u8], text.as_bytes()].concat();
        let bytes = [&[0xc4, bytes.len() as u8], bytes].concat();
        [vec![0x81], name("item"), vec![0x81], name("a"), vec![0x82], name("id"), name(id), name("param"), bytes]
            .concat()
    }

    #[test]
    fn ids_do_not_count_and_values_do() {
        let (one, ids) = model(&recorded("xyz", &[1, 2])).unwrap();
        assert_eq!(ids, Ids::from([("xyz".into(), ".item.a".into())]));
        assert_eq!(one, Values::from([(".item.a.param".into(), vec![0xc4, 2, 1, 2])]));
        assert_eq!(model(&recorded("other", &[1, 2])).unwrap().0, one);
        assert_ne!(model(&recorded("xyz", &[1, 3])).unwrap().0, one);
    }

    #[test]
    fn an_optimizers_values_are_found_under_the_path_of_the_parameter_in_any_order() {
        let ids = Ids::from([("xyz".into(), "a".into()), ("uvw".into(), "b".into())]);
        let entry = |id: &str, value: u8| [&[0xa3], id.as_bytes(), &[value]].concat();
        let one = [vec![0x82], entry("xyz", 1), entry("uvw", 2)].concat();
        let other = [vec![0x82], entry("uvw", 2), entry("xyz", 1)].concat();
        let expected = Values::from([(".a".into(), vec![1]), (".b".into(), vec![2])]);
        assert_eq!((optimizer(&one, &ids).unwrap(), optimizer(&other, &ids).unwrap()), (expected.clone(), expected));
    }

    #[test]
    fn values_of_every_kind_are_read_to_their_end() {
        let values: [&[u8]; 12] = [
            &[0x07],
            &[0xe0],
            &[0xc0],
            &[0xc3],
            &[0xca, 0, 0, 0, 0],
            &[0xcb, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xcd, 1, 2],
            &[0xd3, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xd9, 1, b'x'],
            &[0xc5, 0, 2, 9, 9],
            &[0xa1, b'x'],
            &[0xc6, 0, 0, 0, 1, 9],
        ];
        let list = [&[0xdc, 0, values.len() as u8], values.concat().as_slice()].concat();
        let read = optimizer(&list, &Ids::new()).unwrap();
        values.iter().enumerate().for_each(|(index, value)| assert_eq!(read[&format!(".{index}")], *value));
    }

    #[test]
    fn a_file_that_is_cut_or_too_long_is_an_error() {
        let whole = recorded("xyz", &[1, 2]);
        assert!((0..whole.len()).all(|length| model(&whole[..length]).is_err()));
        assert!(model(&[whole, vec![0]].concat()).is_err());
    }
}
