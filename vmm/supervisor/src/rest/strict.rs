//! JSON as what a schema says it is: a structure is an object.
//!
//! What serde derives for structures takes an array as well, whose items are the fields in their order. No schema of ours says so, and a client that sends one
//! means something else: wherever a structure is wanted, at any depth, only an object is taken. (Structures within an enum's variant, or that are flattened into
//! another one, are buffered by serde first and out of reach; no request has any.)

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

/// Reads a value of JSON as a type.
///
/// # Errors
/// It is not of that type: what is wrong with it.
pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Strict(value))
}

struct Strict(Value);

impl IntoDeserializer<'_, Error> for Strict {
    type Deserializer = Strict;

    fn into_deserializer(self) -> Strict {
        self
    }
}

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Strict));
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Value::Object(fields) => {
                let mut fields = MapDeserializer::new(fields.into_iter().map(|(k, v)| (k, Strict(v))));
                let value = visitor.visit_map(&mut fields)?;
                fields.end().map(|()| value)
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &"an object")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier
        ignored_any
    }
}

#[cfg(test)]
mod tests {
    use foraker_api::guest::{Bulk, GuestSpec};
    use foraker_api::{Configuration, Create, Filter};
    use serde_json::json;

    use super::*;

    #[test]
    fn an_array_is_no_object_at_any_depth() {
        for array in [
            json!([]),
            json!([[1]]),
            json!({"guest": []}),
            json!({"guest": ["name", "image"]}),
            json!({"guest": {"image": "x", "processor": []}}),
            json!({"guest": {"image": "x", "network": {"publish": [["127.0.0.1:80", 80]]}}}),
        ] {
            let why = read::<Create>(array.clone()).expect_err("no objects").to_string();
            assert!(why.contains("expected an object"), "{array}: {why}");
        }
        assert!(read::<Bulk>(json!({"action": "kill", "filter": []})).is_err());
        assert!(read::<Configuration>(json!({"owners": {"x": {"most": []}}})).is_err());
        assert!(read::<Configuration>(json!({"owners": []})).is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut spec = GuestSpec::of("httpd");
        spec.name = Some("web".to_owned());
        spec.arguments = vec!["a".to_owned(), String::new()];
        spec.environment.insert("A".to_owned(), "b".to_owned());
        spec.network.publish = serde_json::from_value(json!([{"host": "[::1]:80", "guest": 80}])).unwrap();
        spec.network.ipv4 = Some([10, 0, 0, 1].into());
        spec.memory = Some(1 << 40);
        let create = Create { count: 3, wait_seconds: 7, guest: spec };
        let value = serde_json::to_value(&create).unwrap();
        let back: Create = read(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(back).unwrap(), value);
        let filter: Filter = read(json!({"ids": [1, 2], "states": ["running"], "name": null})).unwrap();
        assert_eq!((filter.ids, filter.states.len(), filter.name), (Some(vec![1, 2]), 1, None));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let unknown = read::<Filter>(json!({"colour": "red"})).unwrap_err().to_string();
        assert!(unknown.contains("colour"), "{unknown}");
        let missing = read::<Bulk>(json!({})).unwrap_err().to_string();
        assert!(missing.contains("action"), "{missing}");
        assert!(read::<Filter>(json!({"states": ["asleep"]})).is_err());
        assert!(read::<Create>(json!({"count": -1, "guest": {"image": "x"}})).is_err());
    }
}
