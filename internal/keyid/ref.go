package keyid

import (
	"bytes"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Kind is the form in which a request names a KMS key.
type Kind uint8

const (
	KeyID     Kind = iota + 1 // 1234abcd-12ab-34cd-56ef-1234567890ab
	KeyARN                    // arn:aws:kms:us-east-1:111122223333:key/1234abcd-…
	AliasName                 // alias/name
	AliasARN                  // arn:aws:kms:us-east-1:111122223333:alias/name
)

// Ref is a parsed key identifier. Slices alias the parsed bytes and are valid as long as those.
type Ref struct {
	Kind      Kind
	ID        ID     // KeyID, KeyARN
	Alias     []byte // AliasName, AliasARN: "alias/…"
	Partition []byte // of an ARN; the caller compares it, and the Region, with its own
	Region    []byte
	Account   Account
}

// Fault says why Parse refused an identifier.
type Fault uint8

const (
	None     Fault = iota
	BadKeyID       // neither a key ID, an ARN nor an alias name; or an ARN whose key/… part is not a key ID
	BadARN         // starts with "arn:" and is not a KMS ARN
	BadAlias       // starts with "alias/" (after the prefix, in an ARN) and breaks the rules for alias names
)

const (
	arnPrefix   = "arn:"
	keyPrefix   = "key/"
	arnLabelMax = 32 // bytes of a partition or Region name; AWS's longest today has 14
)

// Parse reads the value of a KeyId member: a key ID, key ARN, alias name or alias ARN. Length limits of the member are the caller's.
func Parse(s []byte) (Ref, Fault) {
	switch {
	case hasPrefix(s, arnPrefix):
		return parseARN(s)
	case hasPrefix(s, kmsapi.AliasPrefix):
		if !ValidAliasName(s) {
			return Ref{}, BadAlias
		}
		return Ref{Kind: AliasName, Alias: s}, None
	}
	id, ok := ParseID(s)
	if !ok {
		return Ref{}, BadKeyID
	}
	return Ref{Kind: KeyID, ID: id}, None
}

// parseARN reads arn:<partition>:kms:<region>:<account>:<key/… or alias/…>.
func parseARN(s []byte) (Ref, Fault) {
	var r Ref
	rest := s[len(arnPrefix):]
	var service, account []byte
	for _, part := range [...]*[]byte{&r.Partition, &service, &r.Region, &account} {
		i := bytes.IndexByte(rest, ':')
		if i < 0 {
			return Ref{}, BadARN
		}
		*part, rest = rest[:i:i], rest[i+1:]
	}
	var ok bool
	if r.Account, ok = ParseAccount(account); !ok || string(service) != "kms" || !validLabel(r.Partition) || !validLabel(r.Region) {
		return Ref{}, BadARN
	}
	switch {
	case hasPrefix(rest, keyPrefix):
		if r.ID, ok = ParseID(rest[len(keyPrefix):]); !ok {
			return Ref{}, BadKeyID
		}
		r.Kind = KeyARN
	case hasPrefix(rest, kmsapi.AliasPrefix):
		if !ValidAliasName(rest) {
			return Ref{}, BadAlias
		}
		r.Kind, r.Alias = AliasARN, rest
	default:
		return Ref{}, BadARN
	}
	return r, None
}

// validLabel holds for the characters of partition and Region names: a-z, 0-9 and hyphens.
func validLabel(s []byte) bool {
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return len(s) > 0 && len(s) <= arnLabelMax
}

// Append appends the identifier in the form it was parsed from. The zero Ref appends nothing.
func (r *Ref) Append(dst []byte) []byte {
	switch r.Kind {
	case KeyID:
		return r.ID.Append(dst)
	case AliasName:
		return append(dst, r.Alias...)
	case KeyARN:
		return r.ID.Append(append(appendARN(dst, r.Partition, r.Region, r.Account), keyPrefix...))
	case AliasARN:
		return append(appendARN(dst, r.Partition, r.Region, r.Account), r.Alias...)
	}
	return dst
}

// AppendKeyARN appends arn:<partition>:kms:<region>:<account>:key/<id>.
func AppendKeyARN(dst []byte, partition, region string, a Account, id ID) []byte {
	return id.Append(append(appendARN(dst, partition, region, a), keyPrefix...))
}

// AppendAliasARN appends arn:<partition>:kms:<region>:<account>:<alias>, where alias is the whole name with its "alias/".
func AppendAliasARN(dst []byte, partition, region string, a Account, alias []byte) []byte {
	return append(appendARN(dst, partition, region, a), alias...)
}

func appendARN[T string | []byte](dst []byte, partition, region T, a Account) []byte {
	dst = append(dst, arnPrefix...)
	dst = append(dst, partition...)
	dst = append(dst, ":kms:"...)
	dst = append(dst, region...)
	dst = append(dst, ':')
	return append(a.Append(dst), ':')
}

// ValidAliasName reports whether s is an alias name: ^alias/[a-zA-Z0-9/_-]+$, at most 256 characters. It does not tell the names reserved for
// AWS managed keys; see ReservedAliasName.
func ValidAliasName(s []byte) bool {
	if len(s) <= len(kmsapi.AliasPrefix) || len(s) > kmsapi.AliasNameMax || !hasPrefix(s, kmsapi.AliasPrefix) {
		return false
	}
	for _, c := range s[len(kmsapi.AliasPrefix):] {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '/' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// ReservedAliasName reports whether s is in the name space of AWS managed keys, alias/aws/…
func ReservedAliasName(s []byte) bool { return hasPrefix(s, kmsapi.AliasReservedPrefix) }

// Partition is the partition that a Region belongs to, for the partitions that the KMS API has public endpoints in; aws for any other name.
func Partition(region string) string {
	switch {
	case len(region) > 3 && region[:3] == "cn-":
		return "aws-cn"
	case len(region) > 7 && region[:7] == "us-gov-":
		return "aws-us-gov"
	}
	return "aws"
}

func hasPrefix(s []byte, prefix string) bool {
	return len(s) >= len(prefix) && string(s[:len(prefix)]) == prefix
}
