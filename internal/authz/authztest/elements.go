package authztest

import (
	"fmt"
	"slices"
	"strings"
)

// elementCases are the four questions about what an element matches: it and its Not form, in Allow and in Deny.
func elementCases(name, element string, values []string, match bool, prepare func(c *Case)) (cases []Case) {
	statement := func(effect, not string) string {
		other := `"Resource":"*"`
		if element == "Resource" {
			other = `"Action":"kms:*"`
		}
		return `{"Effect":"` + effect + `",` + other + `,"` + not + element + `":` + encode(values)
	}
	principal := `,"Principal":{"AWS":"` + alice + `"}}`
	for _, not := range []string{"", "Not"} {
		applies := match != (not == "Not")
		a := ask(allowIf(applies), "%s%s/%s/allow", not, element, name)
		a.KeyPolicy = doc(statement("Allow", not) + principal)
		d := ask(allowIf(!applies), "%s%s/%s/deny", not, element, name)
		d.KeyPolicy = doc(allowAlice, statement("Deny", not)+principal)
		cases = append(cases, a, d)
		if element == "Resource" && slices.ContainsFunc(values, func(v string) bool { return v != "*" && !strings.HasPrefix(v, "arn:") }) {
			continue // malformed in identity policies
		}
		i := ask(allowIf(applies), "%s%s/%s/identity policy allows", not, element, name)
		i.KeyPolicy, i.Identity = doc(delegate), []Document{doc(statement("Allow", not) + "}")}
		j := ask(allowIf(!applies), "%s%s/%s/identity policy denies", not, element, name)
		j.KeyPolicy, j.Identity = doc(delegate), []Document{doc(allowAll, statement("Deny", not)+"}")}
		cases = append(cases, i, j)
	}
	for i := range cases {
		prepare(&cases[i])
	}
	return cases
}

func actionCases() (cases []Case) {
	for _, v := range []struct {
		values []string
		action string
		match  bool
	}{
		{list("kms:Decrypt"), "kms:Decrypt", true},
		{list("kms:decrypt"), "kms:Decrypt", true},
		{list("KMS:DECRYPT"), "kms:Decrypt", true},
		{list("kms:Encrypt"), "kms:Decrypt", false},
		{list("kms:*"), "kms:Decrypt", true},
		{list("*"), "kms:Decrypt", true},
		{list("kms:De*"), "kms:Decrypt", true},
		{list("kms:De*"), "kms:DescribeKey", true},
		{list("kms:De*"), "kms:Encrypt", false},
		{list("kms:?ecrypt"), "kms:Decrypt", true},
		{list("kms:??crypt"), "kms:Decrypt", true},
		{list("kms:??crypt"), "kms:Encrypt", true},
		{list("kms:?ncrypt"), "kms:Decrypt", false},
		{list("kms:Decryp"), "kms:Decrypt", false},
		{list("kms:Decryptt"), "kms:Decrypt", false},
		{list("kms:Decrypt?"), "kms:Decrypt", false},
		{list("kms:Decrypt*"), "kms:Decrypt", true},
		{list("kms:*crypt"), "kms:ReEncryptFrom", false},
		{list("kms:*crypt*"), "kms:ReEncryptFrom", true},
		{list("kms:ReEncrypt*"), "kms:ReEncryptFrom", true},
		{list("kms:ReEncrypt*"), "kms:ReEncryptTo", true},
		{list("kms:ReEncrypt"), "kms:ReEncryptTo", false},
		{list("kms:ReEncryptFrom"), "kms:ReEncryptTo", false},
		{list("kms:GenerateDataKey"), "kms:GenerateDataKeyWithoutPlaintext", false},
		{list("kms:GenerateDataKey*"), "kms:GenerateDataKeyPairWithoutPlaintext", true},
		{list("kms:GenerateDataKey"), "kms:GenerateDataKeyPair", false},
		{list("s3:*"), "kms:Decrypt", false},
		{list("kms:Encrypt", "kms:Decrypt"), "kms:Decrypt", true},
		{list("kms:Encrypt", "kms:Sign"), "kms:Decrypt", false},
		{list("kms:*Grant*"), "kms:CreateGrant", true},
		{list("kms:*Grant"), "kms:ListGrants", false},
		{list("kms:*a*e*K*"), "kms:GenerateDataKey", true},
	} {
		cases = append(cases, elementCases(fmt.Sprintf("%q of %s", v.values, v.action), "Action", v.values, v.match, func(c *Case) { c.Action = v.action })...)
	}
	return cases
}

func resourceCases() (cases []Case) {
	for _, v := range []struct {
		values []string
		match  bool
	}{
		{list("*"), true},
		{list(keyA), true},
		{list(keyA2), false},
		{list(keyB), false},
		{list(aliasA), false},
		{list("arn:aws:kms:us-east-1:111122223333:alias/*"), false},
		{list("arn:aws:kms:us-east-1:111122223333:*"), true},
		{list("arn:aws:kms:us-east-1:111122223333:key/*"), true},
		{list("arn:aws:kms:*:*:key/*"), true},
		{list("arn:aws:kms:us-west-2:111122223333:key/*"), false},
		{list("arn:aws:kms:us-????-?:111122223333:key/*"), true},
		{list("arn:aws:kms:us-east-1:111122223333:key/1234*"), true},
		{list("arn:aws:kms:us-east-1:111122223333:key/mrk-*"), false},
		{list("arn:*"), true},
		{list("*1234567890ab"), true},
		{list("*1234567890a"), false},
		{list(strings.ToUpper(keyA)), false},
		{list("ARN:aws:kms:us-east-1:111122223333:key/*"), false},
		{list(keyA2, keyA), true},
		{list(keyA2, keyB), false},
		{list("arn:aws:kms:us-east-1:${aws:PrincipalAccount}:key/*"), true},
		{list("arn:aws:kms:us-east-1:${aws:PrincipalTag/account}:key/*"), false},
		{list("arn:aws:kms:us-east-1:${aws:PrincipalTag/account, '111122223333'}:key/*"), true},
		{list("arn:aws:s3:::bucket/*"), false},
	} {
		cases = append(cases, elementCases(fmt.Sprintf("%q", v.values), "Resource", v.values, v.match, func(*Case) {})...)
	}
	return cases
}

// variableCases: values with variables, Version 2012-10-17 and before.
func variableCases() (cases []Case) {
	for _, v := range []struct {
		operator, key, value string
		match, old           bool // with variables, and without
	}{
		{"StringEquals", "aws:PrincipalTag/x", "${aws:username}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${AWS:UserName}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/same}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:principaltag/SAME}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/other}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/none}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/none, 'alice'}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/none,'alice'}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/none, 'bob'}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/other, 'alice'}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:NoSuchKey}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:NoSuchKey, 'alice'}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "al${aws:PrincipalTag/ic}e", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${kms:EncryptionContext:who}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${kms:EncryptionContextKeys}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${kms:EncryptionContextKeys, 'alice'}", true, false},
		{"StringEqualsIgnoreCase", "aws:PrincipalTag/x", "A${aws:PrincipalTag/lice}", true, false},
		{"StringLike", "aws:PrincipalTag/x", "${aws:username}*", true, false},
		{"StringLike", "aws:PrincipalTag/x", "${aws:PrincipalTag/star}", false, false},
		{"StringLike", "aws:PrincipalTag/x", "*${aws:PrincipalTag/ic}*", true, false},
		{"StringLike", "aws:PrincipalTag/x", "${*}", false, false},
		{"StringLike", "aws:PrincipalTag/x", "?????", true, true},
		{"StringEquals", "aws:PrincipalTag/star", "a${*}", true, false},
		{"StringLike", "aws:PrincipalTag/star", "a${*}", true, false},
		{"StringLike", "aws:PrincipalTag/star", "a${?}", false, false},
		{"StringEquals", "aws:PrincipalTag/question", "a${?}", true, false},
		{"StringLike", "aws:PrincipalTag/question", "a${?}", true, false},
		{"StringLike", "aws:PrincipalTag/question", "${?}?", false, false},
		{"StringEquals", "aws:PrincipalTag/dollar", "a${$}", true, false},
		{"StringEquals", "aws:PrincipalTag/braces", "${aws:username}", false, true},
		{"StringEquals", "aws:PrincipalTag/braces", "${$}{aws:username}", true, false},
		{"StringLike", "aws:PrincipalTag/braces", "${*}", false, true},
		{"StringEquals", "aws:PrincipalTag/braces", "${aws:PrincipalTag/braces}", true, false},
		{"ArnLike", "aws:PrincipalArn", "arn:aws:iam::${aws:PrincipalAccount}:user/${aws:username}", true, false},
		{"ArnEquals", "aws:PrincipalArn", "arn:aws:iam::*:user/${aws:username}", true, false},
		{"ArnLike", "aws:PrincipalArn", "arn:aws:iam::*:user/${aws:PrincipalTag/none}", false, false},
		{"ArnLike", "aws:PrincipalArn", "arn:aws:iam::*:user/${aws:PrincipalTag/none, 'alice'}", true, false},
		{"ArnLike", "aws:PrincipalArn", "arn:aws:iam::*:user/${aws:PrincipalTag/star}", false, false},
	} {
		prepare := func(c *Case) {
			c.Caller.Tags = []Tag{{"x", "alice"}, {"same", "alice"}, {"other", "bob"}, {"ic", "ic"}, {"lice", "lice"}, {"star", "a*"},
				{"question", "a?"}, {"dollar", "a$"}, {"braces", "${aws:username}"}}
			c.EncryptionContext = map[string]string{"who": "alice"}
		}
		for _, operator := range []string{v.operator, negation[v.operator]} {
			condition := conditionOf(operator, v.key, list(v.value))
			negated := operator != v.operator
			cases = append(cases, conditionCases(fmt.Sprintf("%s/%s/%s", operator, v.key, v.value), condition, v.match != negated, prepare)...)
			for i, c := range conditionCases(fmt.Sprintf("old/%s/%s/%s", operator, v.key, v.value), condition, v.old != negated, prepare) {
				c.KeyPolicy = oldDoc(statementIf("Allow", condition))
				if i == 1 {
					c.KeyPolicy = oldDoc(allowAlice, statementIf("Deny", condition))
				}
				cases = append(cases, c)
				if i == 0 {
					c.Name = "no Version" + strings.TrimPrefix(c.Name, "old")
					c.KeyPolicy = Document(`{"Statement":` + statementIf("Allow", condition) + `}`)
					cases = append(cases, c)
				}
			}
		}
	}
	return cases
}
