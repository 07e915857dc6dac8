package sigv4

import (
	"bytes"
	"crypto/sha256"
	"errors"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// AppendAuthorization signs r with key and appends the value of its Authorization header to dst. It signs every header of r, so r holds the
// headers to be signed and not Authorization itself: host, x-amz-date (AppendDate), and what else the server wants signed. Names are lower
// case and occur once. The date of the signature is that of x-amz-date.
//
// r.Path is what goes on the request line; r.Query must be empty. An AccessKey whose Principal is zero will do.
func AppendAuthorization(dst []byte, key *AccessKey, region, service string, r *Request, s *Scratch) ([]byte, error) {
	s.Reset()
	if !validScopePart(region, regionMax) || !validScopePart(service, serviceMax) {
		return dst, errors.New("sigv4: a region or service has lower-case letters, digits or hyphens")
	}
	if len(r.Headers) > kmsapi.HeaderCountMax || !validMethod(r.Method) || len(r.Path) == 0 || r.Path[0] != '/' || len(r.Query) > 0 {
		return dst, errors.New("sigv4: the request cannot be signed: method, path, query string or number of headers")
	}
	order, err := s.sortHeaders(r)
	if err != nil {
		return dst, err
	}
	if s.at.date < 0 {
		return dst, errors.New("sigv4: the request has no x-amz-date")
	}
	date := trimBlanks(r.Headers[s.at.date].Value)
	unix, ok := parseDate(date)
	if !ok {
		return dst, errors.New("sigv4: x-amz-date is not in the basic format")
	}
	words, ok := key.signingKey(uint(unix/86400)&1, date[:8], region, service)
	if !ok {
		return dst, errors.New("sigv4: the access key is wiped")
	}
	bodyHash := sha256.Sum256(r.Body)
	signature := s.sign(r, order, &bodyHash, &words, date, region, service)
	clear(words[:])

	dst = append(dst, algorithm+" Credential="...)
	dst = append(dst, key.id...)
	dst = append(dst, '/')
	dst = appendScope(dst, date, region, service)
	dst = append(dst, ", SignedHeaders="...)
	dst = appendNames(dst, r, order)
	dst = append(dst, ", Signature="...)
	return appendHex(dst, &signature), nil
}

// sortHeaders puts the indexes of r's headers in ascending order of name: insertion, since there are about ten.
func (s *Scratch) sortHeaders(r *Request) ([]uint8, error) {
	s.at = headerIndex{-1, -1, -1, -1}
	for i := range r.Headers {
		h := &r.Headers[i]
		if !validName(h.Name) || len(h.Name) > kmsapi.HeaderNameMax || hasControl(h.Value) || string(h.Name) == "authorization" {
			return nil, errors.New("sigv4: a header cannot be signed")
		}
		if at := s.at.of(h.Name); at != nil {
			*at = i
		}
		n := i
		for ; n > 0; n-- {
			before := bytes.Compare(r.Headers[s.order[n-1]].Name, h.Name)
			if before == 0 {
				return nil, errors.New("sigv4: a header occurs more than once")
			}
			if before < 0 {
				break
			}
			s.order[n] = s.order[n-1]
		}
		s.order[n] = uint8(i)
	}
	return s.order[:len(r.Headers)], nil
}
