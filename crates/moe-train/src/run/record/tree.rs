//! What a record says about itself, read before burn reads it: burn panics at a tensor whose numbers and shape differ, at a
//! parameter's id that is none, and, a step later, at optimizer state of another shape than its parameter.

use std::{collections::BTreeMap, fmt};

use burn::module::ParamId;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

use super::{RecordError, Shapes};

/// Letters of an encoded [`ParamId`]: 8 bytes in base 32.
const ID_LETTERS: usize = 13;

/// The outermost map of a burn record, read without its tensor values.
#[derive(Deserialize)]
pub(super) struct RecordTree {
    item: Node,
}

impl RecordTree {
    /// Shapes of all parameters of a module.
    ///
    /// # Errors
    ///
    /// A tensor that contradicts itself, an id that is none.
    pub(super) fn module_shapes(&self) -> Result<Shapes, RecordError> {
        let mut shapes = Shapes::new();
        self.item.each_tensor(&mut Vec::new(), &mut |path, node| {
            let shape = node.checked_shape(path)?;
            // A parameter is stored as { id, param: tensor }, which a module's path leaves out.
            let path = path.strip_suffix(&["param"]).unwrap_or(path);
            shapes.insert(path.join("."), shape);
            Ok(())
        })?;
        self.item.check_ids()?;
        Ok(shapes)
    }

    /// Compares the state of an optimizer that keeps tensors of its parameters' shapes with those.
    ///
    /// # Errors
    ///
    /// A tensor that contradicts itself or has another shape than its parameter, state of an unknown parameter.
    pub(super) fn check_state(&self, parameters: &BTreeMap<String, Vec<usize>>) -> Result<(), RecordError> {
        self.item.each_tensor(&mut Vec::new(), &mut |path, node| {
            let shape = node.checked_shape(path)?;
            // Above the state stand its version, `V1`, and the id; below the rank as burn calls it.
            let version = path.iter().position(|name| *name == "V1").filter(|place| *place > 0);
            let id = version.map(|place| path[place - 1]).unwrap_or_default();
            let expected = parameters.get(id).ok_or_else(|| wrong(path, "belongs to no parameter"))?;
            let rank = format!("Rank{}", shape.len());
            if shape != *expected || !path.contains(&rank.as_str()) {
                return Err(wrong(path, &format!("has shape {shape:?}, and its parameter {expected:?}")));
            }
            Ok(())
        })?;
        self.item.check_state_ids(parameters)
    }
}

fn wrong(path: &[&str], what: &str) -> RecordError {
    RecordError(format!("{} {what}", path.join(".")))
}

/// Any MessagePack value, reduced to what it says about shapes.
enum Node {
    Branch(Vec<(String, Node)>),
    Number(u64),
    Text(String),
    /// How many.
    Bytes(usize),
    Other,
}

impl Node {
    fn each_tensor<'a>(
        &'a self,
        path: &mut Vec<&'a str>,
        visit: &mut impl FnMut(&[&'a str], &'a Self) -> Result<(), RecordError>,
    ) -> Result<(), RecordError> {
        let Self::Branch(children) = self else { return Ok(()) };
        if self.is_tensor() {
            return visit(path, self);
        }
        for (name, child) in children {
            path.push(name);
            child.each_tensor(path, visit)?;
            path.pop();
        }
        Ok(())
    }

    /// Whether this is burn's `TensorData { bytes, shape, dtype }`.
    fn is_tensor(&self) -> bool {
        ["bytes", "shape", "dtype"].iter().all(|name| self.child(name).is_some())
    }

    /// The shape of a tensor that has as many numbers as that says.
    fn checked_shape(&self, path: &[&str]) -> Result<Vec<usize>, RecordError> {
        let shape = self.child("shape").and_then(Self::sizes).ok_or_else(|| wrong(path, "has no shape"))?;
        let size =
            self.child("dtype").and_then(Self::bytes_of_dtype).ok_or_else(|| wrong(path, "has no known dtype"))?;
        let asked = shape.iter().try_fold(size, |product, size| product.checked_mul(*size));
        match self.child("bytes") {
            Some(Self::Bytes(found)) if asked == Some(*found) => Ok(shape),
            _ => Err(wrong(path, &format!("has not the numbers of its shape {shape:?}"))),
        }
    }

    fn sizes(&self) -> Option<Vec<usize>> {
        let Self::Branch(sizes) = self else { return None };
        let size = |(_, node): &(String, Self)| match node {
            Self::Number(size) => usize::try_from(*size).ok(),
            _ => None,
        };
        sizes.iter().map(size).collect()
    }

    /// Of those that our records have: f32, i32 and i64 of burn's integers, a byte of a boolean.
    fn bytes_of_dtype(&self) -> Option<usize> {
        match self {
            Self::Text(name) => match name.as_str() {
                "F32" | "I32" => Some(4),
                "I64" => Some(8),
                _ => None,
            },
            Self::Branch(_) => self.child("Bool").map(|_| 1),
            _ => None,
        }
    }

    /// Of parameters, which stand beside `param`.
    fn check_ids(&self) -> Result<(), RecordError> {
        let Self::Branch(children) = self else { return Ok(()) };
        if self.child("param").is_some() {
            match self.child("id") {
                Some(Self::Text(id)) if is_id(id) => {}
                _ => return Err(RecordError("a parameter has no id".into())),
            }
        }
        children.iter().try_for_each(|(_, child)| child.check_ids())
    }

    /// Of state, which stand above its version.
    fn check_state_ids(&self, parameters: &BTreeMap<String, Vec<usize>>) -> Result<(), RecordError> {
        let Self::Branch(children) = self else { return Ok(()) };
        children.iter().try_for_each(|(name, child)| match child.child("V1") {
            Some(_) if !parameters.contains_key(name) => {
                Err(RecordError(format!("`{name}` is the id of no parameter")))
            }
            Some(_) => Ok(()),
            None => child.check_state_ids(parameters),
        })
    }

    fn child(&self, name: &str) -> Option<&Self> {
        let Self::Branch(children) = self else { return None };
        children.iter().find(|(child, _)| child == name).map(|(_, node)| node)
    }
}

/// Checked before burn does: it takes a longer one apart with a panic.
fn is_id(text: &str) -> bool {
    text.len() == ID_LETTERS && ParamId::try_deserialize(text).is_some()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a MessagePack value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut children = Vec::new();
        while let Some(child) = map.next_entry()? {
            children.push(child);
        }
        Ok(Node::Branch(children))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut children = Vec::new();
        while let Some(child) = seq.next_element()? {
            children.push((children.len().to_string(), child));
        }
        Ok(Node::Branch(children))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_i64<E: Error>(self, _value: i64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_f64<E: Error>(self, _value: f64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_bool<E: Error>(self, _value: bool) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.into()))
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<Node, E> {
        Ok(Node::Bytes(value.len()))
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Other)
    }
}
