package softkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// element is DER of a tag and contents of less than 64 KiB.
func element(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	switch n := len(content); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
	}
}

var (
	zero, one = []byte{2, 1, 0}, []byte{2, 1, 1}
	sequence  = func(parts ...[]byte) []byte { return element(derSequence, parts...) }
	octets    = func(parts ...[]byte) []byte { return element(derOctets, parts...) }
)

// scalarOf is the private number of one of the generated keys on a curve, and its point.
func scalarOf(t *testing.T, s keyspec.Spec) (scalar, point []byte) {
	t.Helper()
	p := generated()[s]
	point = p.public[len(p.public)-s.Info().Public:]
	if s == keyspec.Secp256k1 {
		return p.private[len(secpHead):][:32], point
	}
	k, err := x509.ParsePKCS8PrivateKey(p.private)
	if err != nil {
		t.Fatal(err)
	}
	if scalar, err = k.(*ecdsa.PrivateKey).Bytes(); err != nil {
		t.Fatal(err)
	}
	return scalar, point
}

// TestImportGenerated: what Generate makes comes in as it is; no other spec takes it.
func TestImportGenerated(t *testing.T) {
	for _, s := range keyspec.Backing() {
		p := generated()[s]
		private, public, err := Import(s, p.private)
		if f := s.Info().Family; f == keyspec.MLDSA || f == keyspec.MLKEM {
			if !errors.Is(err, ErrUnsupported) || private != nil {
				t.Errorf("%v: %v", s, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(private, p.private) || !bytes.Equal(public, p.public) {
			t.Errorf("%v: %v, the same: %t, %t", s, err, bytes.Equal(private, p.private), bytes.Equal(public, p.public))
		}
		for _, other := range keyspec.Backing() {
			if len(p.private) != other.Info().Bits/8 || other.Info().Public != 0 {
				if _, _, err := Import(other, p.private); err == nil && other != s {
					t.Errorf("%v is taken for %v", s, other)
				}
			}
		}
	}
	if _, _, err := Import(keyspec.None, nil); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
}

// TestImportEncodings: every encoding that the formats allow gives one and the same key, and no other encoding gives any.
func TestImportEncodings(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.P256, keyspec.P384, keyspec.P521, keyspec.Secp256k1} {
		scalar, point := scalarOf(t, s)
		order := curveOrder(s)
		curve := []byte(curveNames[s])
		algorithm := sequence([]byte(ecAlgorithm), curve)
		pub := element(derContext1, element(derBits, []byte{0}, point))
		implicit := element(derImplicit1, []byte{0}, point)
		key := func(parts ...[]byte) []byte { return octets(sequence(parts...)) }
		plain := key(one, octets(scalar))
		other := bytes.Clone(point)
		other[len(other)-1] ^= 1
		otherCurve := []byte(curveNames[keyspec.P256])
		if s == keyspec.P256 {
			otherCurve = []byte(curveNames[keyspec.P384])
		}
		add := func(n int64) []byte {
			return new(big.Int).Add(order, big.NewInt(n)).FillBytes(make([]byte, len(scalar)))
		}
		for name, c := range map[string]struct {
			material []byte
			good     bool
		}{
			"least":                    {sequence(zero, algorithm, plain), true},
			"point":                    {sequence(zero, algorithm, key(one, octets(scalar), pub)), true},
			"curve inside":             {sequence(zero, algorithm, key(one, octets(scalar), element(derContext0, curve), pub)), true},
			"attributes":               {sequence(zero, algorithm, plain, element(derContext0)), true},
			"version 1":                {sequence(one, algorithm, plain), true},
			"version 1, point":         {sequence(one, algorithm, plain, implicit), true},
			"both points":              {sequence(one, algorithm, key(one, octets(scalar), pub), implicit), true},
			"another point":            {sequence(zero, algorithm, key(one, octets(scalar), element(derContext1, element(derBits, []byte{0}, other)))), false},
			"another point outside":    {sequence(one, algorithm, plain, element(derImplicit1, []byte{0}, other)), false},
			"a point of no bytes":      {sequence(zero, algorithm, key(one, octets(scalar), element(derContext1, element(derBits, []byte{0})))), false},
			"unused bits":              {sequence(zero, algorithm, key(one, octets(scalar), element(derContext1, element(derBits, []byte{1}, point)))), false},
			"version 0, point":         {sequence(zero, algorithm, plain, implicit), false},
			"version 2":                {sequence([]byte{2, 1, 2}, algorithm, plain), false},
			"version of two bytes":     {sequence([]byte{2, 2, 0, 0}, algorithm, plain), false},
			"inner version 0":          {sequence(zero, algorithm, key(zero, octets(scalar))), false},
			"another curve":            {sequence(zero, sequence([]byte(ecAlgorithm), otherCurve), plain), false},
			"another curve inside":     {sequence(zero, algorithm, key(one, octets(scalar), element(derContext0, otherCurve))), false},
			"no curve":                 {sequence(zero, sequence([]byte(ecAlgorithm)), key(one, octets(scalar), element(derContext0, curve))), false},
			"more in the algorithm":    {sequence(zero, sequence([]byte(ecAlgorithm), curve, zero), plain), false},
			"another algorithm":        {sequence(zero, sequence([]byte(rsaAlgorithm)), plain), false},
			"after":                    {append(sequence(zero, algorithm, plain), 0), false},
			"at the end":               {sequence(zero, algorithm, plain, zero), false},
			"at the key's end":         {sequence(zero, algorithm, octets(sequence(one, octets(scalar)), zero)), false},
			"inside the key's end":     {sequence(zero, algorithm, key(one, octets(scalar), zero)), false},
			"in the point":             {sequence(zero, algorithm, key(one, octets(scalar), element(derContext1, element(derBits, []byte{0}, point), zero))), false},
			"attributes twice":         {sequence(zero, algorithm, plain, element(derContext0), element(derContext0)), false},
			"zero":                     {sequence(zero, algorithm, key(one, octets(make([]byte, len(scalar))))), false},
			"the order":                {sequence(zero, algorithm, key(one, octets(add(0)))), false},
			"above the order":          {sequence(zero, algorithm, key(one, octets(add(1)))), false},
			"a zero before":            {sequence(zero, algorithm, key(one, octets([]byte{0}, scalar))), false},
			"no scalar":                {sequence(zero, algorithm, key(one, octets())), false},
			"long length":              {append([]byte{derSequence, 0x83, 0, 0, byte(len(zero) + len(algorithm) + len(plain))}, bytes.Join([][]byte{zero, algorithm, plain}, nil)...), false},
			"indefinite":               {append(append([]byte{derSequence, 0x80}, bytes.Join([][]byte{zero, algorithm, plain}, nil)...), 0, 0), false},
			"length longer than it is": {append([]byte{derSequence, 0x7f}, bytes.Join([][]byte{zero, algorithm, plain}, nil)...), false},
		} {
			private, public, err := Import(s, c.material)
			switch {
			case c.good && (err != nil || !bytes.Equal(private, generated()[s].private) || !bytes.Equal(public, generated()[s].public)):
				t.Errorf("%v, %s: %v", s, name, err)
			case !c.good && (!errors.Is(err, ErrKey) || private != nil || public != nil):
				t.Errorf("%v, %s: %x, %v", s, name, private, err)
			}
		}
		// A scalar that starts with a zero, written without it.
		small := append(make([]byte, len(scalar)-3), 1, 2, 3)
		long, _, err := Import(s, sequence(zero, algorithm, key(one, octets(small))))
		short, _, shortErr := Import(s, sequence(zero, algorithm, key(one, octets([]byte{1, 2, 3}))))
		if err != nil || shortErr != nil || !bytes.Equal(long, short) {
			t.Errorf("%v, a small scalar: %v, %v", s, err, shortErr)
		}
	}
}

func curveOrder(s keyspec.Spec) *big.Int {
	if s == keyspec.Secp256k1 {
		n, _ := new(big.Int).SetString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
		return n
	}
	return curve(s).Params().N
}

func TestImportEdwards(t *testing.T) {
	s := keyspec.Ed25519
	k, err := x509.ParsePKCS8PrivateKey(generated()[s].private)
	if err != nil {
		t.Fatal(err)
	}
	seed, public := k.(ed25519.PrivateKey).Seed(), k.(ed25519.PrivateKey).Public().(ed25519.PublicKey)
	algorithm := sequence([]byte(ed25519Algorithm))
	other := bytes.Clone(public)
	other[3] ^= 1
	for name, c := range map[string]struct {
		material []byte
		good     bool
	}{
		"least":           {sequence(zero, algorithm, octets(octets(seed))), true},
		"point":           {sequence(one, algorithm, octets(octets(seed)), element(derImplicit1, []byte{0}, public)), true},
		"another point":   {sequence(one, algorithm, octets(octets(seed)), element(derImplicit1, []byte{0}, other)), false},
		"NULL":            {sequence(zero, sequence([]byte(ed25519Algorithm), []byte{5, 0}), octets(octets(seed))), false},
		"short":           {sequence(zero, algorithm, octets(octets(seed[:31]))), false},
		"long":            {sequence(zero, algorithm, octets(octets(seed, []byte{0}))), false},
		"after the seed":  {sequence(zero, algorithm, octets(octets(seed), zero)), false},
		"bare":            {sequence(zero, algorithm, octets(seed)), false},
		"X25519":          {sequence(zero, sequence([]byte("\x06\x03\x2b\x65\x6e")), octets(octets(seed))), false},
		"seed and public": {sequence(zero, algorithm, octets(octets(seed, public))), false},
	} {
		private, got, err := Import(s, c.material)
		if c.good && (err != nil || !bytes.Equal(private, generated()[s].private) || !bytes.Equal(got, generated()[s].public)) || !c.good && (!errors.Is(err, ErrKey) || private != nil) {
			t.Errorf("%s: %x, %v", name, private, err)
		}
	}
}

func TestImportRSA(t *testing.T) {
	s := keyspec.RSA2048
	parsed, err := x509.ParsePKCS8PrivateKey(generated()[s].private)
	if err != nil {
		t.Fatal(err)
	}
	k := parsed.(*rsa.PrivateKey)
	number := func(n *big.Int) []byte {
		b := n.Bytes()
		if len(b) == 0 || b[0] >= 0x80 {
			b = append([]byte{0}, b...)
		}
		return element(derInteger, b)
	}
	parts := func() []*big.Int {
		return []*big.Int{k.N, big.NewInt(int64(k.E)), k.D, k.Primes[0], k.Primes[1], k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv}
	}
	encode := func(version []byte, numbers []*big.Int, more ...[]byte) []byte {
		inner := [][]byte{version}
		for _, n := range numbers {
			inner = append(inner, number(n))
		}
		return sequence(zero, sequence([]byte(rsaAlgorithm)), octets(sequence(append(inner, more...)...)))
	}
	if private, public, err := Import(s, encode(zero, parts())); err != nil || !bytes.Equal(private, generated()[s].private) || !bytes.Equal(public, generated()[s].public) {
		t.Fatalf("%v", err)
	}
	bad := map[string][]byte{
		"version 1": encode(one, parts()), "an element more": encode(zero, parts(), zero), "an element less": encode(zero, parts()[:7]),
		"after":        append(encode(zero, parts()), 0),
		"no NULL":      sequence(zero, sequence([]byte(rsaAlgorithm[:len(rsaAlgorithm)-2])), octets(sequence(zero))),
		"a point":      sequence(one, sequence([]byte(rsaAlgorithm)), octets(k.N.Bytes()), element(derImplicit1, []byte{0, 1})),
		"bare":         x509.MarshalPKCS1PrivateKey(k),
		"another size": generated()[keyspec.RSA3072].private,
	}
	for i, name := range []string{"modulus", "exponent", "private exponent", "prime", "other prime", "Dp", "Dq", "Qinv"} {
		numbers := parts()
		numbers[i] = new(big.Int).Add(numbers[i], big.NewInt(2))
		bad[name] = encode(zero, numbers)
		numbers[i] = new(big.Int)
		bad["no "+name] = encode(zero, numbers)
	}
	swapped := parts()
	swapped[3], swapped[4] = swapped[4], swapped[3] // and the numbers for CRT as they were
	bad["primes swapped"] = encode(zero, swapped)
	for name, material := range bad {
		if private, _, err := Import(s, material); !errors.Is(err, ErrKey) || private != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
